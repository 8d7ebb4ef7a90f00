import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed.kernels import has_kernels
from sgquant_optuna.packed.packed_features import PackedFeatures
from sgquant_optuna.quantization.affine import affine_parameters, fake_quantize
from sgquant_optuna.quantization.layout import row_bytes
from tests.packed.allocations import LargestOutput

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)


def make(num_nodes, num_columns, bit_widths, axis="bucket", seed=0):
    """Packed features and the fake-quantized matrix that they must equal."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_nodes, num_columns, generator=generator)
    num_buckets = len(bit_widths)
    bucket = torch.randint(num_buckets, (num_nodes,), generator=generator)
    widths = torch.tensor([16 if q == 32 else q for q in bit_widths])
    shape = {"bucket": (num_buckets, 1), "column": (num_buckets, num_columns)}
    lines = widths[bucket] if axis == "row" else widths
    ends = torch.full(shape.get(axis, (num_nodes, 1)), 2.0)
    scale, zero_point = affine_parameters(-ends, ends + 0.25, lines[:, None])
    packed = PackedFeatures.from_dense(
        x, bucket, bit_widths, scale, zero_point, ranges_by_row=axis == "row"
    )
    at = torch.arange(num_nodes) if axis == "row" else bucket
    fake = fake_quantize(x, scale[at], zero_point[at], widths[bucket][:, None])
    full = torch.tensor(bit_widths)[bucket] == 32
    return packed, torch.where(full[:, None], x, fake), bucket


@pytest.mark.parametrize("axis", ["bucket", "column", "row"])
@settings(deadline=None, max_examples=30)
@given(
    num_nodes=st.integers(1, 40),
    num_columns=st.integers(1, 40),
    bit_widths=st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=5),
)
def test_packed_rows_equal_the_fake_quantized_ones(axis, num_nodes, num_columns, bit_widths):
    packed, expected, _ = make(num_nodes, num_columns, bit_widths, axis)
    assert torch.equal(packed.to_dense(), expected)
    index = torch.arange(num_nodes).flip(0).repeat(2)
    assert torch.equal(packed.rows(index), expected[index])


def test_stored_bytes_are_rows_and_ranges_and_bucket_ids():
    packed, _, bucket = make(100, 33, [8, 3, 1, 32])
    count = torch.bincount(bucket, minlength=4).tolist()
    rows = sum(n * row_bytes(33, q) for n, q in zip(count[:3], [8, 3, 1], strict=True))
    assert packed.stored_nbytes == rows + count[3] * 4 * 33 + 4 * 8 + 25
    assert packed.nbytes == packed.stored_nbytes - 25 + 5 * 100


def test_one_bucket_stores_no_ids():
    packed, _, _ = make(10, 9, [3])
    assert packed.stored_nbytes == 10 * 5 + 8


@pytest.mark.parametrize("axis", ["bucket", "column", "row"])
def test_a_saved_file_opens_the_same(tmp_path, axis):
    packed, expected, _ = make(50, 13, [4, 32, 5], axis)
    packed.save(tmp_path / "x")
    opened = PackedFeatures.open(tmp_path / "x")
    assert torch.equal(opened.to_dense(), expected)
    assert opened.stored_nbytes == packed.stored_nbytes


def test_an_altered_file_never_gives_other_numbers(tmp_path):
    packed, expected, _ = make(12, 5, [4, 32, 2])
    packed.save(tmp_path / "x")
    content = (tmp_path / "x").read_bytes()

    @settings(deadline=None, max_examples=200)
    @given(st.integers(0, 8 * len(content) - 1), st.booleans())
    def alter(bit, cut):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "y").write_bytes(content[: bit // 8] if cut else damaged)
        try:
            opened = PackedFeatures.open(tmp_path / "y")
        except PackingError:
            return
        assert torch.equal(opened.to_dense(), expected)

    alter()


@pytest.mark.parametrize("rounding", ["nearest", "floor"])
@pytest.mark.parametrize("axis", ["bucket", "column", "row"])
def test_the_kernel_packs_the_same_bytes(axis, rounding):
    if not has_kernels():
        pytest.skip("needs numba")
    for num_columns in (1, 7, 64, 133):
        x = torch.randn(90, num_columns)
        x[3], x[4] = torch.inf, -torch.inf
        x[5] = 0.5  # between two codes of many widths
        bucket = torch.arange(90) % 11  # bucket 9 is float32, bucket 10 has no width of its own
        widths = (*WIDTHS, 4)
        quantized = torch.tensor([16 if q == 32 else q for q in widths])
        lines = quantized[bucket] if axis == "row" else quantized
        ends = torch.full((len(lines), num_columns if axis == "column" else 1), 2.0)
        scale, zero_point = affine_parameters(-ends, ends, lines[:, None], rounding=rounding)
        plain, fast = (
            PackedFeatures.from_dense(
                x,
                bucket,
                widths,
                scale,
                zero_point,
                rounding=rounding,
                ranges_by_row=axis == "row",
                fast=fast,
            )
            for fast in (False, True)
        )
        assert torch.equal(plain.data, fast.data)


def test_bad_input_is_named():
    x, one = torch.zeros(3, 2), torch.ones(1, 1)
    for fast in {False, has_kernels()}:
        with pytest.raises(ValueError, match="NaN"):
            PackedFeatures.from_dense(x * torch.nan, None, [4], one, one, fast=fast)
    with pytest.raises(ValueError, match="NaN"):
        PackedFeatures.from_dense(x * torch.nan, None, [32], one, one)
    with pytest.raises(ValueError, match="expected 0 to 0, got 0 to 1"):
        PackedFeatures.from_dense(x, torch.tensor([0, 1, 0]), [4], one, one)
    with pytest.raises(ValueError, match="expected float32"):
        PackedFeatures.from_dense(x.double(), None, [4], one, one)
    with pytest.raises(PackingError, match="scale"):
        PackedFeatures.from_dense(x, None, [4], one * 0, one)
    with pytest.raises(IndexError, match="expected 0 to 2"):
        PackedFeatures.from_dense(x, None, [4], one, one).rows(torch.tensor([3]))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("axis", ["bucket", "column", "row"])
def test_features_that_lie_by_column_are_packed_without_a_copy_of_them(fast, axis, monkeypatch):
    if fast and not has_kernels():
        pytest.skip("needs numba")
    monkeypatch.setattr(PackedFeatures.bucket_blocks, "__defaults__", (64,))
    widths = [8, 3, 32]
    x = torch.randn(40, 1000).t()
    assert not x.is_contiguous()
    bucket = torch.arange(1000) % 3
    lines = torch.tensor([8, 3, 16])
    lines = lines[bucket] if axis == "row" else lines
    ends = torch.full((len(lines), 40 if axis == "column" else 1), 2.0)
    arguments = bucket, widths, *affine_parameters(-ends, ends, lines[:, None])
    options = {"ranges_by_row": axis == "row", "fast": fast}
    with LargestOutput() as largest:
        packed = PackedFeatures.from_dense(x, *arguments, **options)
    assert largest.nbytes < x.nbytes / 2
    expected = PackedFeatures.from_dense(x.contiguous(), *arguments, **options)
    assert torch.equal(packed.data, expected.data)


def test_infinity_packs_to_the_end_of_a_range_but_not_to_float32():
    x, one = torch.tensor([[torch.inf, -torch.inf]]), torch.ones(1, 1)
    assert PackedFeatures.from_dense(x, None, [4], one, 0 * one).to_dense().tolist() == [[15, 0]]
    with pytest.raises(ValueError, match="finite numbers at 32 bits"):
        PackedFeatures.from_dense(x, None, [32], one, one)
