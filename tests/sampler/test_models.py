"""The cost model and the scores, against values computed by hand or by brute force."""

import time

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution

from sgquant_optuna.sampler.acquisition import ParetoFront, expected_improvement, greedy_batch
from sgquant_optuna.sampler.gaussian_process import GaussianProcess, Prediction
from sgquant_optuna.sampler.known_objective import KnownObjective
from sgquant_optuna.sampler.problem import target_of
from sgquant_optuna.sampler.space import FiniteSpace
from sgquant_optuna.sampler.surrogate import Surrogate, probability_below

WIDTHS = (1, 2, 4, 8, 16)


def grid(parameters):
    return FiniteSpace({f"p{i:02d}": CategoricalDistribution(WIDTHS) for i in range(parameters)})


def believed(mean, deviation):
    return Prediction(np.array(mean, dtype=float), np.array(deviation, dtype=float))


def test_expected_improvement_of_a_standard_normal_is_its_density_at_zero():
    improvement = expected_improvement(believed([0.0, -10.0], [1.0, 1e-6]), 0.0)
    np.testing.assert_allclose(improvement, [1 / np.sqrt(2 * np.pi), 10.0])


def test_a_batch_prefers_candidates_that_win_elsewhere():
    # Candidates 0 and 1 win in the same draws; 2 wins less, but in the others.
    gains = np.array([[5.0, 4.0, 0.0], [5.0, 4.0, 0.0], [0.0, 0.0, 3.0]])
    assert greedy_batch(gains, 3) == [0, 2]


def test_the_hypervolume_gain_of_a_certain_candidate_is_its_area():
    # Front (2, 3) and (5, 1), reference (10, 10). A certain candidate at (1, 4) adds the strip
    # from 1 to 2 between 4 and 10 = 6; one at (3, 2) adds 2 * (3 - 2) = 2; (6, 2) adds nothing.
    front = ParetoFront.of_points(np.array([5.0, 2.0]), np.array([1.0, 3.0]), end=10.0, top=10.0)
    gain = front.expected_improvement(np.array([1.0, 3.0, 6.0]), believed([4, 2, 2], [1e-9] * 3))
    np.testing.assert_allclose(gain, [6, 2, 0], atol=1e-6)
    after = front.with_point(3.0, 2.0).expected_improvement(np.array([3.0]), believed([2], [1e-9]))
    np.testing.assert_allclose(after, [0], atol=1e-6)


def test_an_empty_front_gains_up_to_the_reference():
    front = ParetoFront.of_points(np.array([]), np.array([]), end=4.0, top=3.0)
    gain = front.expected_improvement(np.array([1.0]), believed([1], [1e-9]))
    np.testing.assert_allclose(gain, [6], atol=1e-6)


def smooth(rows):
    bits = np.array(WIDTHS)[rows]
    return np.sum(np.array([9, 5, 3, 7])[: rows.shape[1]] * 2.0**-bits, axis=1)


def test_the_process_interpolates_what_it_measured_and_predicts_between():
    space, rng = grid(4), np.random.default_rng(0)
    rows = space.distinct(space.random(rng, 80))
    process = GaussianProcess(space.features(rows), smooth(rows), np.ones(len(rows)), seed=0)
    at_data = process.predict(space.features(rows))
    np.testing.assert_allclose(at_data.mean, smooth(rows), atol=0.1)
    new = space.without(space.all(), rows)
    prediction = process.predict(space.features(new))
    error = np.abs(prediction.mean - smooth(new))
    assert np.median(error) < 0.15
    assert np.mean(error <= 3 * prediction.deviation + 0.02) > 0.9


def test_the_noise_of_measurements_is_learned():
    space, rng = grid(4), np.random.default_rng(1)
    rows = space.random(rng, 150)
    noisy = smooth(rows) + 0.5 * rng.standard_normal(150)
    target = target_of(space, "objective 0", rows, noisy)
    process = GaussianProcess(target.features, target.values, target.counts, seed=0)
    assert 0.3 < process.noise_deviation < 0.8


def test_joint_draws_have_the_predicted_moments():
    space, rng = grid(3), np.random.default_rng(0)
    rows = space.distinct(space.random(rng, 20))
    process = GaussianProcess(space.features(rows), smooth(rows), np.ones(len(rows)), seed=0)
    new = space.features(space.without(space.all(), rows)[:10])
    drawn = process.sample(new, rng, 4000)
    prediction = process.predict(new)
    np.testing.assert_allclose(drawn.mean(axis=0), prediction.mean, atol=0.15)
    np.testing.assert_allclose(drawn.std(axis=0), prediction.deviation, atol=0.1)


@pytest.mark.parametrize("values", [[3.0, 3.0, 3.0], [0.0, 0.0, 1e300], [-1e-300, 0.0, 1e-300]])
def test_degenerate_targets_can_be_learned(values):
    space = grid(2)
    target = target_of(space, "constraint 0", space.all()[:3], np.array(values))
    prediction = Surrogate(target, seed=0).predict(target.features)
    assert np.all(np.isfinite(prediction.mean))
    assert np.all(np.isfinite(prediction.deviation))


def test_warping_keeps_the_limit_of_a_constraint():
    space = grid(2)
    target = target_of(space, "constraint 0", space.all()[:4], np.array([-0.5, 0.1, 3.0, 60.0]))
    surrogate = Surrogate(target, seed=0)
    assert surrogate.warp(np.array(0.0)) == 0
    np.testing.assert_allclose(surrogate.unwarp(surrogate.warp(target.values)), target.values)
    sure = probability_below(believed([-3.0, 0.0, 3.0], [1.0, 1.0, 1.0]))
    np.testing.assert_allclose(sure, [0.99865, 0.5, 0.00135], atol=1e-5)


def test_repeated_measurements_are_joined():
    space = grid(2)
    rows = np.array([[0, 1], [3, 3], [0, 1]])
    target = target_of(space, "objective 0", rows, np.array([1.0, 5.0, 2.0]))
    np.testing.assert_array_equal(target.indices, [[0, 1], [3, 3]])
    np.testing.assert_allclose(target.values, [1.5, 5.0])
    np.testing.assert_array_equal(target.counts, [2, 1])


def test_an_additive_known_objective_is_tabulated():
    calls = []

    def memory(params):
        calls.append(params)
        return params["constant"] + 3 * params["p00"] + 5 * params["p01"]

    space = grid(2)
    known = KnownObjective(memory, space, objective=0, sign=1.0, defaults={"constant": 100})
    before = len(calls)
    np.testing.assert_allclose(known.values(np.array([[0, 0], [4, 2]])), [108, 168])
    assert len(calls) == before


def test_a_known_objective_that_is_no_sum_is_called_once_for_each():
    calls = []

    def product(params):
        calls.append(params)
        return params["a"] * params["b"] if params["a"] else float("nan")

    space = FiniteSpace({"a": IntDistribution(0, 9), "b": IntDistribution(1, 9)})
    known = KnownObjective(product, space, objective=0, sign=-1.0, defaults={})
    rows = np.array([[2, 3], [0, 0], [9, 8]])
    np.testing.assert_allclose(known.values(rows), [-8, np.inf, -81])
    before = len(calls)
    known.values(rows)
    assert len(calls) == before


def test_one_fit_of_a_thousand_rows_takes_a_tenth_of_a_second():
    space, rng = grid(12), np.random.default_rng(0)
    rows = space.distinct(space.random(rng, 1000))
    values = rows @ rng.uniform(size=12) + 0.1 * rng.standard_normal(len(rows))
    target = target_of(space, "constraint 0", rows, values)
    seconds = []
    for _ in range(5):
        started = time.process_time()
        Surrogate(target, seed=0)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.15  # 0.1 on an idle machine
