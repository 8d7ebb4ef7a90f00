import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed import operations
from sgquant_optuna.packed.features import PackedFeatures
from sgquant_optuna.packed.operations import aggregate, has_kernels, linear
from sgquant_optuna.quantization.affine import affine_parameters, fake_quantize
from sgquant_optuna.quantization.layout import row_bytes

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


def random_graph(num_rows, num_nodes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    degree = torch.randint(0, 6, (num_rows,), generator=generator)
    crow = torch.cat([torch.zeros(1, dtype=torch.int64), degree.cumsum(0)])
    col = torch.randint(num_nodes, (int(crow[-1]),), generator=generator)
    return crow, col, torch.randn(len(col), generator=generator)


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


@pytest.mark.parametrize("fast", [False, True])
def test_no_rows_and_empty_buckets_pack_to_nothing(fast):
    if fast and not has_kernels():
        pytest.skip("needs numba")
    one = torch.ones(3, 1)
    packed = PackedFeatures.from_dense(
        torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), [1, 8, 32], one, one, fast=fast
    )
    assert packed.data.numel() == 0
    assert linear(packed, torch.ones(2, 5), fast=fast).shape == (0, 2)
    nothing = torch.zeros(1, dtype=torch.long)
    assert aggregate(nothing, nothing[:0], None, packed, fast=fast).shape == (0, 5)


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
@pytest.mark.parametrize("num_columns", [1, 9, 133])
def test_operations_equal_those_on_dense_rows(fast, axis, num_columns):
    if fast and not has_kernels():
        pytest.skip("needs numba")
    packed, dense, _ = make(60, num_columns, WIDTHS, axis)
    weight = torch.randn(7, num_columns)
    bias = torch.randn(7)
    expected = torch.nn.functional.linear(dense, weight, bias)
    # Sums of F or of up to 5 float32 numbers of size 1 to 10: rounding of 1e-7 each.
    tolerance = {"rtol": 1e-5, "atol": 2e-5}
    torch.testing.assert_close(linear(packed, weight, bias, fast=fast), expected, **tolerance)
    crow, col, value = random_graph(40, 60)
    row = torch.arange(40).repeat_interleave(crow.diff())
    matrix = torch.zeros(40, 60).index_put_((row, col), value, accumulate=True)
    result = aggregate(crow, col, value, packed, fast=fast)
    torch.testing.assert_close(result, matrix @ dense, **tolerance)


@pytest.mark.parametrize("axis", ["bucket", "column", "row"])
@settings(deadline=None, max_examples=30)
@given(
    num_nodes=st.integers(1, 50),
    num_columns=st.integers(1, 70),
    num_out=st.integers(1, 9),
    bit_widths=st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=5),
    seed=st.integers(0, 9),
)
def test_kernels_and_plain_torch_agree(axis, num_nodes, num_columns, num_out, bit_widths, seed):
    if not has_kernels():
        pytest.skip("needs numba")
    packed, _, _ = make(num_nodes, num_columns, bit_widths, axis, seed)
    weight = torch.randn(num_out, num_columns)
    graph = random_graph(20, num_nodes, seed)
    for operation in (
        lambda fast: linear(packed, weight, fast=fast),
        lambda fast: aggregate(*graph, packed, fast=fast),
    ):
        torch.testing.assert_close(operation(True), operation(False), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("axis", ["bucket", "column", "row"])
def test_blocks_of_any_size_give_the_same_sums(axis, monkeypatch):
    packed, _, _ = make(60, 13, WIDTHS, axis)
    weight = torch.randn(7, 13)
    crow, col, value = random_graph(40, 60)
    product, sums = linear(packed, weight, fast=False), aggregate(crow, col, value, packed)
    # Two columns of three rows at a time, and rows with more edges than a block.
    monkeypatch.setattr(operations, "WORKSPACE_VALUES", 2 * 60)
    monkeypatch.setattr(operations, "BLOCK_VALUES", 3 * 2)
    monkeypatch.setattr(operations, "BLOCK_EDGES", 2)
    tolerance = {"rtol": 1e-5, "atol": 2e-5}
    torch.testing.assert_close(linear(packed, weight, fast=False), product, **tolerance)
    torch.testing.assert_close(aggregate(crow, col, value, packed), sums, **tolerance)


def test_a_long_neighbourhood_fills_the_queue_of_every_bucket():
    if not has_kernels():
        pytest.skip("needs numba")
    packed, dense, _ = make(200, 150, [8, 4, 2, 1, 32, 3])
    for degree in range(1, 40):
        col, value = torch.randint(200, (degree,)), torch.randn(degree)
        result = aggregate(torch.tensor([0, degree]), col, value, packed, fast=True)
        torch.testing.assert_close(result, (value @ dense[col])[None], rtol=1e-5, atol=2e-5)


def test_a_graph_that_does_not_fit_is_refused():
    packed, _, _ = make(5, 4, [2])
    with pytest.raises(ValueError, match="nodes 0 to 4"):
        aggregate(torch.tensor([0, 1]), torch.tensor([5]), None, packed)
    with pytest.raises(ValueError, match="crow"):
        aggregate(torch.tensor([0, 2]), torch.tensor([3]), None, packed)
