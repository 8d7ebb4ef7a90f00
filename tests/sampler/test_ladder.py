"""The start: uniform configurations by bisection, until the models take over."""

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sgquant_optuna.sampler.history import Record
from sgquant_optuna.sampler.known_objective import KnownObjective
from sgquant_optuna.sampler.ladder import open_rungs
from sgquant_optuna.sampler.problem import Problem
from sgquant_optuna.sampler.space import FiniteSpace
from tests.sampler.toy_study import grid


def problem_of(space, violations, *, constrained=True, known=None):
    """A problem of measured configurations; a violation above 0 is not feasible."""
    records = [
        Record(
            *(number, TrialState.COMPLETE, None, tuple(index), False, (1.0,)),
            {"drop": violation} if constrained else {},
        )
        for number, (index, violation) in enumerate(violations.items())
    ]
    return Problem(space, records, [StudyDirection.MINIMIZE], known)


def rungs(problem, fixed=None):
    return open_rungs(problem, np.random.default_rng(0), fixed or {})


def uniform(*levels):
    return [(level, level) for level in levels]


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({}, [2, 0, 3, 1, 4]),
        ({2: 1.0}, [3, 4]),  # up after an infeasible one
        ({2: 0.0}, [0, 1]),  # down after a feasible one
        ({2: 1.0, 3: 1.0}, [4]),
        ({2: 1.0, 3: -1.0}, []),
        ({2: 1.0, 3: 1.0, 4: 1.0}, []),  # none is feasible: the models go on
        ({0: -1.0}, []),
        ({1: 1.0, 4: -1.0}, [2, 3]),
        ({3: 1.0, 1: -1.0}, [0]),  # noise: the lowest feasible one counts
    ],
)
def test_bisection_finds_the_lowest_feasible_rung(measured, expected):
    violations = {(level, level): violation for level, violation in measured.items()}
    assert rungs(problem_of(grid(2), violations)) == uniform(*expected)


def test_without_a_constraint_four_rungs_span_the_ladder():
    assert rungs(problem_of(grid(2), {(2, 2): 0.0}, constrained=False)) == uniform(0, 1, 3, 4)


def test_ladders_of_unequal_length_are_climbed_at_the_same_relative_height():
    space = FiniteSpace({"a": IntDistribution(0, 2), "b": IntDistribution(0, 4)})
    assert rungs(problem_of(space, {})) == [(1, 2), (0, 0), (2, 3), (0, 1), (2, 4)]


def test_the_cheap_end_is_the_low_one():
    space = FiniteSpace({"a": IntDistribution(0, 4), "b": IntDistribution(0, 4)})
    known = KnownObjective(
        lambda params: -params["a"] - params["b"], space, objective=0, sign=1.0, defaults={}
    )
    assert rungs(problem_of(space, {(2, 2): 1.0}, known=known)) == uniform(1, 0)


def test_parameters_without_an_order_do_not_count():
    space = FiniteSpace(
        {"kind": CategoricalDistribution(["x", "y"]), "width": IntDistribution(0, 4)}
    )
    assert [width for _, width in rungs(problem_of(space, {(1, 2): 1.0}))] == [3, 4]
    nothing = FiniteSpace({"kind": CategoricalDistribution(["x", "y"])})
    assert rungs(problem_of(nothing, {})) == []


def test_enqueued_parameters_keep_their_values():
    assert rungs(problem_of(grid(2), {}), {"p00": 4}) == [(4, level) for level in (2, 0, 3, 1, 4)]


def test_ten_measured_configurations_take_the_place_of_the_ladder():
    measured = {(level % 5, level // 5 + 1): 1.0 for level in range(9)}
    assert rungs(problem_of(grid(2), measured)) != []
    assert rungs(problem_of(grid(2), {**measured, (4, 3): 1.0})) == []
