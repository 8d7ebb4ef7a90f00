"""Candidates: where they lie on the grid, and that enqueued parameters are kept."""

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution

from sgquant_optuna.sampler.candidates import anchors, neighbours, random_candidates
from sgquant_optuna.sampler.space import FiniteSpace
from tests.sampler.toy_study import grid


def test_neighbours_change_at_most_three_parameters_and_stay_on_the_grid():
    space, rng = grid(6), np.random.default_rng(0)
    parent = np.array([[0, 4, 2, 2, 1, 3]])
    children = neighbours(space, rng, parent, 500)
    assert children.shape == (500, 6)
    assert np.max(np.count_nonzero(children != parent, axis=1)) == 3
    assert children.min() == 0
    assert children.max() == 4


def test_seven_of_ten_changes_of_ordered_values_are_single_steps():
    space = FiniteSpace({"a": IntDistribution(0, 100)})
    children = neighbours(space, np.random.default_rng(0), np.array([[50]]), 500)
    # All of one to three changes are steps with the probability (0.7 + 0.7**2 + 0.7**3) / 3 =
    # 0.51; the others end anywhere, 7 of 101 times as near.
    assert np.mean(np.abs(children - 50) <= 3) == pytest.approx(0.51 + 0.49 * 7 / 101, abs=0.06)


def test_uniform_configurations_have_the_same_relative_position_everywhere():
    space = FiniteSpace(
        {"a": CategoricalDistribution([1, 2, 4, 8, 16]), "b": IntDistribution(0, 8)}
    )
    # Nine levels of b; those of a are half as far apart and rounded to even positions.
    assert anchors(space)[:, 1].tolist() == list(range(9))
    assert anchors(space)[:, 0].tolist() == [0, 0, 1, 2, 2, 2, 3, 4, 4]


def test_a_small_grid_is_listed_completely():
    space, rng = grid(3), np.random.default_rng(0)
    assert len(random_candidates(space, rng, 63, {})) == 125  # 5**3, at most twice 63
    assert len(random_candidates(space, rng, 62, {})) <= 62


def test_every_candidate_has_the_enqueued_parameters():
    space, rng = grid(3), np.random.default_rng(0)
    pool = random_candidates(space, rng, 20, {"p01": 3})
    assert set(pool[:, 1].tolist()) == {3}
    assert len(np.unique(pool, axis=0)) == len(pool)
