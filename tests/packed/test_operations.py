import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgquant_optuna.packed import operations
from sgquant_optuna.packed.kernels import has_kernels
from sgquant_optuna.packed.operations import aggregate, linear
from sgquant_optuna.packed.packed_features import PackedFeatures
from tests.packed.test_packed_features import WIDTHS, make


def random_graph(num_rows, num_nodes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    degree = torch.randint(0, 6, (num_rows,), generator=generator)
    crow = torch.cat([torch.zeros(1, dtype=torch.int64), degree.cumsum(0)])
    col = torch.randint(num_nodes, (int(crow[-1]),), generator=generator)
    return crow, col, torch.randn(len(col), generator=generator)


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
