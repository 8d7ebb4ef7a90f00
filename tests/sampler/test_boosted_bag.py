"""The bag of boosted trees, against functions that it learns."""

import numpy as np
import pytest

from sgquant_optuna.sampler.boosted_bag import BoostedBag
from tests.sampler.toy_study import grid


def bag_of(space, rows, values, *, ordered=True):
    ordered = space.ordered_columns if ordered else None
    counts = np.ones(len(rows))
    return BoostedBag(space.features(rows), values, counts, seed=0, ordered=ordered)


def test_a_cliff_is_learned_as_a_cliff():
    space = grid(2)
    rows = space.all()
    values = np.where(rows[:, 0] < 2, 5.0, 1.0)  # below the third width
    prediction = bag_of(space, rows, values).predict(space.features(rows))
    np.testing.assert_allclose(prediction.mean, values, atol=0.1)
    assert prediction.deviation.max() < 0.5


def test_the_only_measurement_is_predicted_everywhere():
    space = grid(2)
    prediction = bag_of(space, space.all()[:1], np.array([3.0])).predict(
        space.features(space.all())
    )
    np.testing.assert_allclose(prediction.mean, 3.0)
    assert np.all(prediction.deviation > 0)


@pytest.mark.parametrize("direction", [-1, 1])
def test_more_bits_never_raise_what_falls_and_never_lower_what_rises(direction):
    space, rng = grid(3), np.random.default_rng(0)
    rows = np.concatenate([space.distinct(space.random(rng, 30)), [[0, 0, 0], [4, 4, 4]]])
    noisy = direction * (rows @ [5.0, 1.0, 0.1]) + rng.standard_normal(len(rows))
    mean = bag_of(space, rows, noisy).mean(space.features(space.all())).reshape(5, 5, 5)
    free = bag_of(space, rows, noisy, ordered=False).mean(space.features(space.all()))
    for axis in range(3):
        assert np.all(direction * np.diff(mean, axis=axis) >= -1e-9)
    steps = np.diff(free.reshape(5, 5, 5), axis=2)
    assert np.any(direction * steps < -1e-3)  # the noise alone would bend it


def test_what_neither_falls_nor_rises_is_learned_freely():
    space = grid(2)
    rows = space.all()
    values = np.abs(rows[:, 0] - 2.0)
    mean = bag_of(space, rows, values).mean(space.features(rows))
    np.testing.assert_allclose(mean, values, atol=0.15)


def test_two_parameters_may_act_together_only():
    space = grid(2)
    rows = space.all()
    both_low = (rows[:, 0] < 2) & (rows[:, 1] < 2)
    mean = bag_of(space, rows, np.where(both_low, 4.0, 0.0)).mean(space.features(rows))
    assert mean[both_low].min() > 2.5  # a sum of one term each could not tell these apart
    assert mean[~both_low].max() < 1.0


def test_what_was_left_out_is_predicted_worse_than_what_was_seen():
    space, rng = grid(4), np.random.default_rng(0)
    rows = space.distinct(space.random(rng, 40))
    values = rows.sum(axis=1) + 0.5 * rng.standard_normal(len(rows))
    bag = bag_of(space, rows, values)
    seen = np.abs(bag.mean(space.features(rows)) - values).mean()
    assert seen < np.abs(bag.left_out - values).mean() < 2.5


def test_joint_draws_have_the_predicted_moments_and_move_together():
    space, rng = grid(3), np.random.default_rng(0)
    rows = space.distinct(space.random(rng, 20))
    bag = bag_of(space, rows, rows.sum(axis=1).astype(float))
    new = space.features(np.array([[0, 0, 1], [0, 0, 1], [4, 3, 4]]))
    drawn, prediction = bag.sample(new, rng, 4000), bag.predict(new)
    np.testing.assert_allclose(drawn.mean(axis=0), prediction.mean, atol=0.1)
    np.testing.assert_allclose(drawn.std(axis=0), prediction.deviation, rtol=0.1)
    assert np.corrcoef(drawn.T)[0, 1] > 0.99


def test_hundreds_of_parameters_of_hundreds_of_values_take_little_memory():
    rng = np.random.default_rng(0)
    features = rng.uniform(size=(60, 300))
    values = 10.0 * (features[:, 7] > 0.5)
    bag = BoostedBag(features, values, np.ones(60), seed=0)
    mean = bag.mean(features)
    assert mean[values > 0].min() > mean[values == 0].max()


def test_the_same_seed_gives_the_same_bag():
    space = grid(2)
    rows, values = space.all()[:9], np.arange(9.0)
    first, second = (bag_of(space, rows, values).mean(space.features(rows)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
