"""Intervals of a drop on test items: by trainings and items."""

import pytest
import torch

from sgquant_optuna.graph.tasks.metrics import mean_absolute_error, right_answers
from sgquant_optuna.search.drop_interval import drop_interval, interval_of_sums


def test_the_interval_counts_trainings_and_nodes():
    # 400 nodes of which 40 are lost in every training: 10 +- 1.96 * sqrt(0.1 * 0.9 / 400) * 100.
    lost = torch.zeros(5, 400)
    lost[:, :40] = 100
    low, high = interval_of_sums(lost)
    assert (low, high) == pytest.approx((10 - 2.94, 10 + 2.94), abs=0.4)
    # Trainings that differ in the mean widen it, the more the fewer they are.
    lost[0, :200] = 100
    assert interval_of_sums(lost)[1] > high + 5


def test_the_interval_of_classes_compares_right_answers():
    targets = torch.zeros(400, dtype=torch.long)
    right = torch.tensor([[1.0, 0.0]]).repeat(400, 1)
    worse = right.clone()
    worse[:40] = torch.tensor([0.0, 1.0])
    low, high = drop_interval([right] * 5, [worse] * 5, targets, right_answers)
    assert (low, high) == pytest.approx((10 - 2.94, 10 + 2.94), abs=0.4)


def test_the_interval_of_an_error_is_that_of_its_growth():
    # Errors grow by 1 at a fifth of 100 items: 0.2 +- 1.96 * sqrt(0.2 * 0.8 / 100).
    targets = torch.zeros(100)
    worse = targets.clone()
    worse[:20] = 1.0
    low, high = drop_interval([targets] * 3, [worse] * 3, targets, mean_absolute_error)
    assert (low, high) == pytest.approx((0.2 - 0.078, 0.2 + 0.078), abs=0.02)
