"""An objective that is computed: how often its function is called."""

import numpy as np
from optuna.distributions import IntDistribution

from sgquant_optuna.sampler.known_objective import KnownObjective
from sgquant_optuna.sampler.space import FiniteSpace
from tests.sampler.toy_study import grid


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
