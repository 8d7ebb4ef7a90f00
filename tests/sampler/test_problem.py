"""The targets of a round."""

import numpy as np

from sgquant_optuna.sampler.problem import target_of
from tests.sampler.toy_study import grid


def test_repeated_measurements_are_joined():
    space = grid(2)
    rows = np.array([[0, 1], [3, 3], [0, 1]])
    target = target_of(space, "objective 0", rows, np.array([1.0, 5.0, 2.0]))
    np.testing.assert_array_equal(target.indices, [[0, 1], [3, 3]])
    np.testing.assert_allclose(target.values, [1.5, 5.0])
    np.testing.assert_array_equal(target.counts, [2, 1])
