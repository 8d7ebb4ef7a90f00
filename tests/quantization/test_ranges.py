import pytest
import torch

from sgquant_optuna.exceptions import CalibrationError
from sgquant_optuna.quantization.affine import affine_parameters, fake_quantize
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.ranges import estimate_ranges

MINMAX = QuantizerConfig(range_estimator="minmax")
LEAST_SQUARES = QuantizerConfig(range_estimator="least_squares")


def squared_error(x, lower, upper, bit_width):
    scale, zero_point = affine_parameters(lower, upper, bit_width)
    return (fake_quantize(x, scale, zero_point, bit_width) - x).square().sum().item()


def test_minmax_is_minimum_and_maximum_for_every_width():
    x = torch.tensor([[1.0, -2.0], [5.0, 0.0]])
    lower, upper = estimate_ranges(x, None, 1, (1, 8), MINMAX)
    assert lower.tolist() == [[-2.0], [-2.0]]
    assert upper.tolist() == [[5.0], [5.0]]


def test_groups_have_their_own_range_and_an_empty_one_is_zero():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    lower, upper = estimate_ranges(x, torch.tensor([[0], [2]]), 3, (4,), MINMAX)
    assert lower.tolist() == [[1.0, 0.0, 3.0]]
    assert upper.tolist() == [[2.0, 0.0, 4.0]]
    lower, upper = estimate_ranges(x, torch.tensor([[0, 1]]), 2, (4,), MINMAX)
    assert lower.tolist() == [[1.0, 2.0]]
    assert upper.tolist() == [[3.0, 4.0]]


def test_percentile_cuts_an_outlier():
    x = torch.cat([torch.linspace(1, 2, 999), torch.tensor([100.0])])[:, None]
    config = QuantizerConfig(range_estimator="percentile", percentile=99.0)
    lower, upper = estimate_ranges(x, None, 1, (4,), config)
    assert upper.item() == pytest.approx(1.99, abs=0.01)
    assert lower.item() == pytest.approx(1.01, abs=0.01)


def test_percentile_of_groups_ranks_within_the_group():
    x = torch.tensor([[1.0], [2.0], [3.0], [10.0], [20.0], [30.0]])
    groups = torch.tensor([[0], [0], [0], [1], [1], [1]])
    config = QuantizerConfig(range_estimator="percentile", percentile=75.0)
    lower, upper = estimate_ranges(x, groups, 3, (4,), config)
    assert lower.tolist() == [[1.0, 10.0, 0.0]]  # rank 0.25 * 2 rounds to 0, to even
    assert upper.tolist() == [[3.0, 30.0, 0.0]] or upper.tolist() == [[2.0, 20.0, 0.0]]


@pytest.mark.parametrize("bit_width", [1, 2, 3, 4])
def test_least_squares_beats_minmax_on_outliers(bit_width):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20_000, 4, generator=generator) * 0.05
    x[torch.rand(20_000, 4, generator=generator) < 0.9] = 0
    x[0, 0] = 0.3
    found = estimate_ranges(x, None, 1, (bit_width,), LEAST_SQUARES)
    plain = estimate_ranges(x, None, 1, (bit_width,), MINMAX)
    assert squared_error(x, *found, bit_width) < 0.8 * squared_error(x, *plain, bit_width)


@pytest.mark.parametrize("bit_width", [1, 2, 4])
def test_least_squares_is_near_the_best_of_a_fine_grid(bit_width):
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(1))
    lower, upper = estimate_ranges(x, None, 1, (bit_width,), LEAST_SQUARES)
    best = min(
        squared_error(x, torch.tensor([-end]), torch.tensor([end]), bit_width)
        for end in torch.linspace(0.2, 4, 200).tolist()
    )
    assert squared_error(x, lower[0], upper[0], bit_width) < 1.05 * best


@pytest.mark.parametrize("estimator", ["least_squares", "minmax", "percentile"])
def test_where_values_touch_zero_the_range_starts_at_zero(estimator):
    x = torch.rand(50, 4).relu()
    x[::2] = 0
    config = QuantizerConfig(range_estimator=estimator)
    lower, _ = estimate_ranges(x, None, 1, (1, 4), config)
    assert lower.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("estimator", ["least_squares", "minmax", "percentile"])
def test_binary_features_are_exact_at_one_bit(estimator):
    x = (torch.rand(40, 8, generator=torch.Generator().manual_seed(0)) < 0.1).float()
    config = QuantizerConfig(range_estimator=estimator, percentile=100)
    lower, upper = estimate_ranges(x, None, 1, (1,), config)
    scale, zero_point = affine_parameters(lower[0], upper[0], 1)
    assert fake_quantize(x, scale, zero_point, 1).equal(x)


@pytest.mark.parametrize("estimator", ["least_squares", "minmax", "percentile"])
def test_without_widths_there_are_no_ranges(estimator):
    config = QuantizerConfig(range_estimator=estimator)
    lower, upper = estimate_ranges(torch.eye(3), torch.tensor([[0], [1], [1]]), 2, (), config)
    assert lower.shape == upper.shape == (0, 2)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(CalibrationError, match="expected finite numbers, got NaN or infinity"):
        estimate_ranges(torch.tensor([[0.0, bad]]), None, 1, (4,), MINMAX)


def test_many_groups_take_the_blocked_way_and_agree_with_one_by_one():
    x = torch.rand(30, 200, generator=torch.Generator().manual_seed(3))
    together = estimate_ranges(x, torch.arange(200)[None, :], 200, (2,), LEAST_SQUARES)
    for column in (0, 77, 199):
        alone = estimate_ranges(x[:, [column]], None, 1, (2,), LEAST_SQUARES)
        # Many groups use coarser histograms, one value a bin at this size.
        assert together[1][0, column].item() == pytest.approx(alone[1].item(), rel=0.11)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="rounding: expected one of"):
        QuantizerConfig(rounding="up")
    with pytest.raises(ValueError, match="axis: expected one of"):
        QuantizerConfig(axis="node")
    with pytest.raises(ValueError, match="percentile: expected in"):
        QuantizerConfig(percentile=20)
    assert QuantizerConfig.paper().rounding == "floor"
