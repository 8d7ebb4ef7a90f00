"""The default cost model leans on trees where its measurements say so."""

import numpy as np

from sgquant_optuna.sampler.blend import Blend
from sgquant_optuna.sampler.gaussian_process import GaussianProcess
from tests.sampler.toy_study import WIDTHS, grid

SPACE = grid(4)
ROWS = SPACE.distinct(SPACE.random(np.random.default_rng(0), 60))
NEW = SPACE.without(SPACE.all(), ROWS)


def smooth(rows):
    return np.sum(np.array([9, 5, 3, 7]) * 2.0 ** -np.array(WIDTHS)[rows], axis=1)


def cliffs(rows):
    return np.sum(np.array([4, 2, 1, 3]) * (rows < [1, 2, 3, 2]), axis=1).astype(float)


def blend_of(drop):
    counts = np.ones(len(ROWS))
    return Blend(SPACE.features(ROWS), drop(ROWS), counts, seed=0, ordered=SPACE.ordered_columns)


def process_of(drop):
    return GaussianProcess(SPACE.features(ROWS), drop(ROWS), np.ones(len(ROWS)), seed=0)


def error(model, drop):
    return np.abs(model.predict(SPACE.features(NEW)).mean - drop(NEW)).mean()


def test_trees_do_no_harm_to_a_smooth_cost():
    assert error(blend_of(smooth), smooth) < 1.2 * error(process_of(smooth), smooth)


def test_cliffs_are_learned_with_trees():
    blend = blend_of(cliffs)
    assert blend.guided_weight > 0.5
    assert error(blend, cliffs) < 0.7 * error(process_of(cliffs), cliffs)


def test_joint_draws_have_the_predicted_moments():
    blend, new = blend_of(cliffs), SPACE.features(NEW[:10])
    drawn, prediction = blend.sample(new, np.random.default_rng(0), 6000), blend.predict(new)
    np.testing.assert_allclose(drawn.mean(axis=0), prediction.mean, atol=0.1)
    np.testing.assert_allclose(drawn.std(axis=0), prediction.deviation, rtol=0.1, atol=0.05)


def test_two_measurements_can_be_learned():
    two = Blend(np.eye(2), np.array([1.0, 2.0]), np.ones(2), seed=0, ordered=np.ones(2, bool))
    prediction = two.predict(np.eye(2))
    assert prediction.mean[0] < prediction.mean[1]
    assert np.isfinite(prediction.deviation).all()
