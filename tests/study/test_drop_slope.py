import numpy as np
import pytest

from sgquant_optuna.study.drop_evidence import DropEvidence
from sgquant_optuna.study.drop_slope import DropSlope, certifiable_flips


def evidence(expected, lost_nodes, *, nodes=100, trainings=1, deviation=0.0):
    """A trial whose trainings all expect the same drop and lose the first nodes."""
    lost = np.zeros(nodes, dtype=np.int64)
    lost[:lost_nodes] = 1
    return DropEvidence.of([expected] * trainings, [lost] * trainings, deviation)


def test_without_trials_the_slope_is_one_give_or_take():
    assert DropSlope.learned([]) == DropSlope(1.0, 0.7)
    assert DropSlope.learned([(0.0, evidence(0.0, 0))]) == DropSlope(1.0, 0.7)


def test_where_no_label_changes_nothing_is_learned():
    assert DropSlope.learned([(2.0, evidence(1.0, 0))]) == DropSlope(1.0, 0.7)


def test_the_slope_of_one_trial_is_drop_over_expected_drop():
    # 4 of 100 nodes are lost where 2 points are expected: k = 2. What a node loses for each point,
    # h, is 50 for 4 nodes, else 0: its variance is 0.04 * 0.96 * 50^2 = 96, and that of the mean
    # over 100 nodes 96 / 99. Between trainings, of which there is one, the prior says
    # (0.4 * 2)^2 = 0.64.
    variance = 96 / 99 + 0.64
    precision = 1 / variance + 1 / 0.49
    slope = DropSlope.learned([(3.0, evidence(2.0, 4))])
    assert slope.slope == pytest.approx((2 / variance + 1 / 0.49) / precision)
    assert slope.error == pytest.approx(precision**-0.5)


def test_the_spread_of_the_slopes_of_trainings_counts():
    lost = [np.array([1] * 4 + [0] * 96), np.array([1] * 2 + [0] * 98)]
    # Slopes of the trainings: 4 and 2, so their mean has the variance 2 / 2 = 1. Of the two, nodes
    # 0 and 1 lose h = 100 each, nodes 2 and 3 lose 50: mean 3, mean square 250, variance 241 / 99.
    variance = 241 / 99 + 1.0
    slope = DropSlope.learned([(3.0, DropEvidence.of([1.0, 1.0], lost, 0.0))])
    assert slope.error == pytest.approx((1 / variance + 1 / 0.49) ** -0.5)


def test_trials_far_from_full_precision_say_nothing_where_others_are_near():
    near, far = (3.0, evidence(1.0, 1)), (40.0, evidence(20.0, 40))
    assert DropSlope.learned([near, far]) == DropSlope.learned([near])
    assert DropSlope.learned([far]) != DropSlope(1.0, 0.7)  # better than nothing


def test_more_labelled_nodes_make_the_slope_more_certain():
    errors = [
        DropSlope.learned([(3.0, evidence(2.0, n // 50, nodes=n, trainings=3))]).error
        for n in (100, 500, 5000)
    ]
    assert errors == sorted(errors, reverse=True)
    # Three trainings that agree leave the luck of the nodes: of 1,000 groups 100 lose h = 50.
    variance = 0.1 * 0.9 * 50**2 * 1000**2 / 999 / 5000**2
    assert errors[-1] == pytest.approx((1 / variance + 1 / 0.49) ** -0.5)


def test_a_bound_adds_the_errors_of_slope_and_nodes():
    # 0.5 * 2 + 1.2816 * hypot(2 * 0.3, 0.8), which is 1.0.
    assert DropSlope(0.5, 0.3).bound(2.0, 0.8, 0.9) == pytest.approx(2.2816, abs=1e-4)
    assert DropSlope(0.5, 0.3).estimate(2.0) == 1.0


def test_no_flips_are_free():
    assert DropSlope(-3.0, 0.1).bound(2.0, 0.0, 0.9) == pytest.approx(0.2)


def test_the_flips_that_can_be_promised_shrink_with_the_error():
    trials = [(4.0, evidence(1.0, 0, deviation=0.0)), (30.0, evidence(9.0, 0))]
    # Each expected point comes with 4 % of flips. With slope 1 +- 0 half a point is 2 %.
    assert certifiable_flips(DropSlope(1.0, 0.0), trials, 0.5, 0.9) == pytest.approx(2.0)
    # With +- 1 the bound is 2.2816 f.
    less = certifiable_flips(DropSlope(1.0, 1.0), trials, 0.5, 0.9)
    assert less == pytest.approx(2.0 / 2.2816, rel=1e-4)
    assert certifiable_flips(DropSlope(1.0, 0.0), [], 0.5, 0.9) is None
