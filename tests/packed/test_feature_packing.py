import pytest
import torch

from sgquant_optuna.packed.fast import has_kernels
from sgquant_optuna.packed.features import PackedFeatures
from sgquant_optuna.quantization.affine import affine_parameters
from tests.packed.allocations import LargestOutput


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("axis", ["bucket", "column", "row"])
def test_features_that_lie_by_column_are_packed_without_a_copy_of_them(fast, axis, monkeypatch):
    if fast and not has_kernels():
        pytest.skip("needs numba")
    monkeypatch.setattr(PackedFeatures.blocks, "__defaults__", (64,))
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
