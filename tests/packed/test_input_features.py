import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgquant_optuna.attachment.input_contents import exact_content, with_width
from sgquant_optuna.exceptions import GraphError, PackingError
from sgquant_optuna.packed.gap_places import PLACES
from sgquant_optuna.packed.input_features import InputPart
from sgquant_optuna.packed.packed_input import PackedInput
from sgquant_optuna.quantization.affine import affine_parameters, fake_quantize
from sgquant_optuna.quantization.input_stores import input_stores

ONE = torch.ones(1, 1)


def values_of(kind, num_rows, num_columns, generator):
    x = torch.rand(num_rows, num_columns, generator=generator)
    keep = torch.rand(num_rows, num_columns, generator=generator) < 0.3
    if kind == "binary":
        return keep.float()
    if kind == "divided":
        return keep / keep.sum(dim=1, keepdim=True).clamp(min=1)
    if kind == "scaled":  # 2/7 is not one divided by a count
        keep[0, 0] = True
        return keep * ((x[:, :1] * 3).ceil() / 7).index_fill(0, torch.tensor(0), 2 / 7)
    return keep * ((x * 5).ceil() / 5 if kind == "few" else x)


def content_of(x, bit_width=32, fake=None):
    content = exact_content(x)
    return content if fake is None else with_width(content, bit_width, x, fake)


ROW_VALUE = {
    "sparse 1/count": "divided",
    "sparse row codebook": "scaled",
    "sparse row values": "scaled",
}


@pytest.mark.parametrize(
    ("store", "kind"),
    [
        *itertools.product(
            ["rows", "codebook", "sparse", "sparse codebook"], ["binary", "few", "many"]
        ),
        *ROW_VALUE.items(),
    ],
)
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
    bit_width = 32 if store in ROW_VALUE else bit_width  # they hold what no width changed
    scale, zero_point = affine_parameters(
        0 * ONE, x.max().clamp(min=0.1) * ONE, min(bit_width, 16)
    )
    expected = x if bit_width == 32 else fake_quantize(x, scale, zero_point, bit_width)
    part = InputPart.from_dense(x, store, bit_width, scale, zero_point, "nearest")
    counted = input_stores(*shape, bit_width, 1, content_of(x, bit_width, expected))
    # Where most values are not zero, and where there are too many, the accounting offers no such.
    assert part.nbytes == counted.get(store, part.nbytes)
    assert store in counted or 2 * torch.count_nonzero(x) > x.numel()
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
    assert part.nbytes == input_stores(5, 7, 4, scale.numel(), content_of(x, 4, expected))[store]
    assert torch.equal(part.rows(torch.arange(5)), expected)
    for sparse in (False, True):
        assert torch.equal(part.matrix(1, 4, sparse=sparse).to_dense(), expected[1:4])


def test_binary_rows_take_only_the_places_of_their_non_zeros():
    # 2 rows of 9 columns with 1 and 3 non-zeros: counts of 2 bits, classes of 3 bits, one value.
    # Columns 0, 4, 5 and 8 are of class 0, so the gaps are 3, and 0, 0, 0: 4 + 1 + 1 + 1 bits.
    x = torch.zeros(2, 9)
    x[0, 8] = x[1, 0] = x[1, 4] = x[1, 5] = 1
    part = InputPart.from_dense(x, "sparse codebook", 1, ONE, 0 * ONE, "nearest")
    sizes = {name: tensor.nbytes for name, tensor in part.tensors.items()}
    places = {"counts": 1, "classes": 5, "parameters": 4, "starts": 1, "gaps": 1}
    assert sizes == {**places, "codes": 0, "values": 4}


def test_binary_rows_divided_by_their_sums_take_no_byte_for_their_values():
    x = torch.zeros(3, 9)
    x[0, 8], x[1, [0, 4, 5]] = 1, 1 / 3
    part = InputPart.from_dense(x, "sparse 1/count", 32, ONE, ONE, "nearest")
    assert {name: tensor.nbytes for name, tensor in part.tensors.items()} == {
        "counts": 1,
        "classes": 5,
        "parameters": 4,
        "starts": 1,
        "gaps": 1,
    }
    assert torch.equal(part.rows(torch.tensor([1, 2, 0])), x[[1, 2, 0]])


@pytest.mark.parametrize("store", ROW_VALUE)
def test_rows_of_several_values_are_not_packed_as_rows_of_one(store):
    with pytest.raises(GraphError, match=f"expected rows of equal non-zeros for {store}"):
        InputPart.from_dense(torch.tensor([[1.0, 0.5]]), store, 32, ONE, ONE, "nearest")


def test_a_value_that_is_not_of_its_count_has_to_be_stored():
    x = torch.tensor([[0.5, 0.0, 0.0]])
    with pytest.raises(GraphError, match="expected rows of equal non-zeros for sparse 1/count"):
        InputPart.from_dense(x, "sparse 1/count", 32, ONE, ONE, "nearest")


def test_tensors_that_do_not_fit_are_refused():
    x = torch.eye(6)
    part = InputPart.from_dense(x, "sparse", 4, ONE, 0 * ONE, "nearest")
    arguments = part.store, part.bit_width, part.shape
    for name, value in {
        "gaps": torch.zeros(99, dtype=torch.uint8),
        "starts": torch.zeros(9, dtype=torch.uint8),
        "classes": torch.zeros(9, dtype=torch.uint8),
        "parameters": torch.zeros(9, dtype=torch.uint8),
        "codes": torch.zeros(1, dtype=torch.uint8),
        "counts": torch.zeros(3, dtype=torch.uint8),
        "scale": torch.ones(2, 2),
    }.items():
        with pytest.raises(PackingError):
            InputPart(*arguments, {**part.tensors, name: value}, part.count_bits)
    rows = {name: part.tensors[name] for name in PLACES}
    with pytest.raises(PackingError, match="of the input: expected torch.float32"):
        InputPart("sparse row values", 32, (6, 6), {**rows, "values": torch.ones(5)}, 1)
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
