"""Candidates that the cost model fills up to a budget, and which of them are kept."""

import numpy as np
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sgquant_optuna.sampler.filling import filled_by_model, near_or_better
from sgquant_optuna.sampler.history import Record
from sgquant_optuna.sampler.known_constraint import KnownConstraint
from sgquant_optuna.sampler.known_objective import KnownFunction
from sgquant_optuna.sampler.problem import Problem
from sgquant_optuna.sampler.surrogate import CostModels, Posterior
from tests.sampler.toy_study import grid, memory_of, prediction_of

SPACE = grid(3)


def problem(budget=20, slack=0.05):
    """Three widths whose drop falls with the first one alone, measured 30 times."""
    rows = SPACE.distinct(SPACE.random(np.random.default_rng(0), 30))
    rows = rows[[sum(SPACE.params_of(tuple(r)).values()) <= budget for r in rows.tolist()]]
    records = [
        Record(i, TrialState.COMPLETE, None, tuple(row), False, (10.0 * 2.0 ** -row[0],), {})
        for i, row in enumerate(rows.tolist())
    ]
    function = KnownFunction(lambda p: memory_of(p) / budget - 1, SPACE, defaults={})
    constraint = KnownConstraint(function, SPACE, slack=slack)
    return Problem(SPACE, records, [StudyDirection.MINIMIZE], None, constraint)


def test_the_model_raises_what_gains_most():
    models = CostModels(problem(), seed=0)
    rng = np.random.default_rng(0)
    filled = filled_by_model(models, models.problem.measured, rng, {})
    assert models.problem.known_constraint.holds(filled).all()
    # From 1 + 1 + 1, the first takes 16 of 20 and leaves 4 for the two others.
    assert [4, 1, 1] in filled.tolist()
    assert set(filled_by_model(models, filled, rng, {"p00": 0})[:, 0]) == {0}


@pytest.mark.parametrize(
    ("means", "measured", "kept"),
    [
        ([1.0, 2.0, 1.1, 3.0], 3.0, [0, 1]),
        ([1.0, 2.0, 0.9, 0.9], 3.0, [0, 1, 2]),  # the third leaves a bit unused, and is better
        ([1.0, 2.0, 0.9, 0.9], 0.8, [0, 1]),  # but not than what was measured at the limit
    ],
)
def test_what_leaves_the_budget_unused_must_be_better(means, measured, kept):
    models = CostModels(problem(budget=18, slack=0.05), seed=0)
    # 18, 18, 17, 14 and 18 bits; of the fourth, 4 bits can become 8.
    rows = np.array([[4, 0, 0], [0, 4, 0], [3, 3, 0], [2, 3, 1], [0, 0, 4]])

    def posterior(rows, means):
        predictions = {"objective 0": prediction_of(means, [0.01] * len(means))}
        return Posterior(rows, predictions, np.ones(len(means)), None)

    found = near_or_better(models, posterior(rows[:4], means), posterior(rows[4:], [measured]))
    assert found.indices.tolist() == rows[kept].tolist()


def test_when_all_at_the_limit_is_measured_the_next_follow():
    models = CostModels(problem(budget=18, slack=0.05), seed=0)
    rows = np.array([[3, 3, 0], [0, 0, 0], [4, 0, 0]])  # 17, 3, and 18 bits
    candidates, measured = (models.posterior(part) for part in (rows[:2], rows[2:]))
    found = near_or_better(models, candidates, measured)
    assert found.indices.tolist() == [[3, 3, 0]]
