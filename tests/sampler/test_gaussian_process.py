"""The Gaussian process, against the function that it learns."""

import numpy as np

from sgquant_optuna.sampler.gaussian_process import GaussianProcess
from sgquant_optuna.sampler.problem import target_of
from tests.sampler.toy_study import WIDTHS, grid


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
