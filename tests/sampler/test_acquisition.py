"""Acquisition functions, against values computed by hand."""

import numpy as np

from sgquant_optuna.sampler.acquisition import ParetoFront, expected_improvement, greedy_batch
from tests.sampler.toy_study import prediction_of


def test_expected_improvement_of_a_standard_normal_is_its_density_at_zero():
    improvement = expected_improvement(prediction_of([0.0, -10.0], [1.0, 1e-6]), 0.0)
    np.testing.assert_allclose(improvement, [1 / np.sqrt(2 * np.pi), 10.0])


def test_a_batch_prefers_candidates_that_win_elsewhere():
    # Candidates 0 and 1 win in the same draws; 2 wins less, but in the others.
    improvements = np.array([[5.0, 4.0, 0.0], [5.0, 4.0, 0.0], [0.0, 0.0, 3.0]])
    assert greedy_batch(improvements, 3) == [0, 2]


def test_the_hypervolume_improvement_by_a_certain_candidate_is_its_area():
    # Front (2, 3) and (5, 1), reference (10, 10). A certain candidate at (1, 4) adds the strip
    # from 1 to 2 between 4 and 10 = 6; one at (3, 2) adds 2 * (3 - 2) = 2; (6, 2) adds nothing.
    front = ParetoFront.of_points(np.array([5.0, 2.0]), np.array([1.0, 3.0]), end=10.0, top=10.0)
    improvement = front.expected_improvement(
        np.array([1.0, 3.0, 6.0]), prediction_of([4, 2, 2], [1e-9] * 3)
    )
    np.testing.assert_allclose(improvement, [6, 2, 0], atol=1e-6)
    after = front.with_point(3.0, 2.0).expected_improvement(
        np.array([3.0]), prediction_of([2], [1e-9])
    )
    np.testing.assert_allclose(after, [0], atol=1e-6)


def test_an_empty_front_improves_up_to_the_reference():
    front = ParetoFront.of_points(np.array([]), np.array([]), end=4.0, top=3.0)
    improvement = front.expected_improvement(np.array([1.0]), prediction_of([1], [1e-9]))
    np.testing.assert_allclose(improvement, [6], atol=1e-6)


def test_a_batch_improves_on_what_is_being_measured():
    # The first candidate is pending: the second adds nothing to it, the third wins elsewhere.
    improvements = np.array([[5.0, 4.0, 0.0], [5.0, 4.0, 0.0], [0.0, 0.0, 3.0]])
    assert greedy_batch(improvements, 3, pending=1) == [2]
