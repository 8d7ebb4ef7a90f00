"""The paper's cost model."""

import numpy as np

from sgquant_optuna.sampler.boosted_trees import BoostedTrees
from sgquant_optuna.sampler.problem import target_of
from tests.sampler.toy_study import grid


def test_the_trees_order_configurations_as_their_measurements_do():
    space = grid(2)
    rows = space.all()
    target = target_of(space, "objective 0", rows, rows.sum(axis=1).astype(float))
    predicted = BoostedTrees(target, seed=0).predict(space.features(np.array([[0, 0], [4, 4]])))
    np.testing.assert_allclose(predicted, [0, 8], atol=0.5)


def test_the_same_seed_gives_the_same_trees():
    space = grid(2)
    target = target_of(space, "objective 0", space.all()[:9], np.arange(9.0))
    first, second = (BoostedTrees(target, seed=3).predict(target.features) for _ in range(2))
    np.testing.assert_array_equal(first, second)
