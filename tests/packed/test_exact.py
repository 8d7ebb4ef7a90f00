import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed.bit_array import pack_integers, read_integers
from sgquant_optuna.packed.exact import (
    CodebookFeatures,
    SparseStore,
    cheapest_store,
    exact_nbytes,
)
from sgquant_optuna.quantization.layout import integers_nbytes


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 30), st.integers(0, 40))
def test_integers_come_back(bits, count):
    values = torch.randint(1 << bits, (count,))
    packed = pack_integers(values, bits)
    assert len(packed) == integers_nbytes(count, bits)
    assert torch.equal(read_integers(packed, count, bits), values)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 20), st.integers(1, 20), st.floats(0, 1), st.integers(1, 9))
def test_exact_stores_lose_nothing(num_rows, num_columns, density, num_values):
    values = torch.randn(num_values)
    x = values[torch.randint(num_values, (num_rows, num_columns))]
    x = x * (torch.rand(num_rows, num_columns) < density)
    index = torch.arange(num_rows).flip(0)
    sizes = exact_nbytes(x)
    for name, store in [("codebook", CodebookFeatures), ("sparse", SparseStore)]:
        made = store.from_dense(x)
        assert torch.equal(made.rows(index), x[index])
        assert made.stored_nbytes == sizes[name]
    cheapest = cheapest_store(x)
    assert (cheapest.stored_nbytes if cheapest else sizes["dense"]) == min(sizes.values())


def test_a_binary_input_like_cora_takes_a_tenth_of_a_megabyte():
    x = torch.zeros(2708 * 1433)
    x[torch.randperm(len(x))[:49216]] = 1
    store = cheapest_store(x.view(2708, 1433))
    assert isinstance(store, SparseStore)
    assert store.stored_nbytes < 0.075e6


def test_sparse_reals_keep_float32_or_take_codes():
    x = torch.randn(40, 30) * (torch.rand(40, 30) < 0.1)
    assert torch.equal(SparseStore.from_dense(x.repeat(20, 1)).rows(torch.arange(40)), x)
    codes = torch.arange(int((x != 0).sum())) % 4
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    store = SparseStore.quantized(x, codes, values, 2)
    dense = store.rows(torch.arange(40))
    assert torch.equal(dense[x != 0], values[codes])
    assert not dense[x == 0].any()


def test_nan_is_refused():
    for store in (CodebookFeatures, SparseStore):
        with pytest.raises(PackingError, match="NaN"):
            store.from_dense(torch.tensor([[torch.nan]]))
