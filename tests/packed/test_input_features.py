import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed.input_features import InputPart
from sgquant_optuna.packed.packed_input import PackedInput
from sgquant_optuna.quantization.affine import affine_parameters, fake_quantize
from sgquant_optuna.quantization.input_stores import InputContent, input_stores

ONE = torch.ones(1, 1)


def values_of(kind, num_rows, num_columns, generator):
    x = torch.rand(num_rows, num_columns, generator=generator)
    keep = torch.rand(num_rows, num_columns, generator=generator) < 0.3
    if kind == "binary":
        return keep.float()
    return keep * ((x * 5).ceil() / 5 if kind == "few" else x)


def content_of(x, *, keeps_zero=True):
    counts = torch.count_nonzero(x, dim=1)
    values = x[x != 0].unique()
    return InputContent(int(counts.sum()), int(counts.max()), len(values), keeps_zero)


@pytest.mark.parametrize("store", ["rows", "codebook", "sparse", "sparse codebook"])
@pytest.mark.parametrize("kind", ["binary", "few", "many"])
@settings(deadline=None, max_examples=12)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 20)),
    bit_width=st.sampled_from((1, 3, 8, 16, 32)),
    seed=st.integers(0, 99),
)
def test_every_store_gives_the_fake_quantized_rows_in_the_bytes_that_were_counted(
    store, kind, shape, bit_width, seed
):
    x = values_of(kind, *shape, torch.Generator().manual_seed(seed))
    scale, zero_point = affine_parameters(
        0 * ONE, x.max().clamp(min=0.1) * ONE, min(bit_width, 16)
    )
    expected = x if bit_width == 32 else fake_quantize(x, scale, zero_point, bit_width)
    part = InputPart.from_dense(x, store, bit_width, scale, zero_point, "nearest")
    assert part.nbytes == input_stores(*shape, bit_width, 1, content_of(x))[store]
    index = torch.arange(len(x)).flip(0).repeat(2)
    assert torch.equal(part.rows(index), expected[index])
    middle = len(x) // 2
    for sparse in (False, True):
        assert torch.equal(part.matrix(0, middle, sparse=sparse).to_dense(), expected[:middle])
        assert torch.equal(
            part.matrix(middle, len(x), sparse=sparse).to_dense(), expected[middle:]
        )


@pytest.mark.parametrize("store", ["rows", "sparse"])
@pytest.mark.parametrize("shape", [(1, 7), (5, 1)], ids=["column", "row"])
def test_ranges_by_column_and_by_row(store, shape):
    x = values_of("many", 5, 7, torch.Generator().manual_seed(0))
    scale, zero_point = affine_parameters(torch.zeros(shape), torch.rand(shape) + 0.5, 4)
    expected = fake_quantize(x, scale, zero_point, 4)
    part = InputPart.from_dense(x, store, 4, scale, zero_point, "nearest")
    assert part.nbytes == input_stores(5, 7, 4, scale.numel(), content_of(x))[store]
    assert torch.equal(part.rows(torch.arange(5)), expected)
    for sparse in (False, True):
        assert torch.equal(part.matrix(1, 4, sparse=sparse).to_dense(), expected[1:4])


def test_binary_rows_take_only_the_places_of_their_non_zeros():
    # 2 rows of 9 columns with 1 and 3 non-zeros: counts of 2 bits, columns of 4 bits, one value.
    x = torch.zeros(2, 9)
    x[0, 8] = x[1, 0] = x[1, 4] = x[1, 5] = 1
    part = InputPart.from_dense(x, "sparse codebook", 1, ONE, 0 * ONE, "nearest")
    sizes = {name: tensor.nbytes for name, tensor in part.tensors.items()}
    assert sizes == {"counts": 1, "columns": 2, "codes": 0, "values": 4}


def test_tensors_that_do_not_fit_are_refused():
    x = torch.eye(6)
    part = InputPart.from_dense(x, "sparse", 4, ONE, 0 * ONE, "nearest")
    arguments = part.store, part.bit_width, part.shape
    for name, value in {
        "columns": torch.zeros(99, dtype=torch.uint8),
        "codes": torch.zeros(1, dtype=torch.uint8),
        "counts": torch.zeros(3, dtype=torch.uint8),
        "scale": torch.ones(2, 2),
    }.items():
        with pytest.raises(PackingError):
            InputPart(*arguments, {**part.tensors, name: value}, part.count_bits)
    with pytest.raises(PackingError, match="input part"):
        InputPart("rows", 4, (6, 6), part.tensors)
    with pytest.raises(PackingError, match="expected one of"):
        InputPart("sparse", 9, (6, 6), part.tensors, part.count_bits)


def test_parts_that_do_not_fit_the_buckets_are_refused():
    part = InputPart.from_dense(torch.eye(3), "rows", 32, ONE, ONE, "nearest")
    bucket = torch.tensor([0, 1, 1, 1], dtype=torch.uint8)
    with pytest.raises(PackingError, match="degree buckets"):
        PackedInput([part, None], bucket, sparse=False)
    with pytest.raises(PackingError, match="packed input"):
        PackedInput([part, part], None, sparse=False)
