"""The ranking of a round: what it repeats, and what happens when a model cannot be fitted."""

import numpy as np
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sgquant_optuna.sampler.history import Record
from sgquant_optuna.sampler.problem import Problem
from sgquant_optuna.sampler.ranking import Acquisition, rank_candidates
from tests.sampler.toy_study import grid

DIRECTIONS = [StudyDirection.MINIMIZE]


class UnlearnableProblem(Problem):
    @property
    def targets(self):
        raise ArithmeticError("nothing to learn")


def records_of(rows):
    return [
        Record(number, TrialState.COMPLETE, None, tuple(row), False, (float(sum(row)),), {})
        for number, row in enumerate(rows.tolist())
    ]


def rank(problem, acquisition, **options):
    rng = np.random.default_rng(0)
    return rank_candidates(
        problem,
        acquisition,
        **{"round_": 1, "rng": rng, "n_measure": 5, "n_sample": 50, "fixed": {}, **options},
    )


@pytest.fixture
def measured():
    space = grid(4)
    return space.distinct(space.random(np.random.default_rng(1), 20))


@pytest.mark.parametrize("acquisition", list(Acquisition))
def test_a_cost_model_that_cannot_be_fitted_gives_a_random_round(measured, acquisition, caplog):
    problem = UnlearnableProblem(grid(4), records_of(measured), DIRECTIONS, None)
    ranking = rank(problem, acquisition)
    assert len(set(ranking.configurations)) == len(ranking.configurations) > 40
    assert ranking.predictions == []
    assert "Round 1 is random: the cost model failed: ArithmeticError" in caplog.text


def test_measured_configurations_are_not_ranked_again(measured):
    problem = Problem(grid(4), records_of(measured), DIRECTIONS, None)
    ranking = rank(problem, Acquisition.DEFAULT)
    assert not set(ranking.configurations) & set(map(tuple, measured.tolist()))
    assert len(ranking.predictions) == len(ranking.configurations)
    assert set(ranking.predictions[0]) == {"objective 0", "objective 0 deviation"}


def test_the_first_round_begins_with_uniform_configurations(measured):
    problem = Problem(grid(4), [], DIRECTIONS, None)
    ranking = rank(problem, Acquisition.DEFAULT, round_=0)
    uniform = [(level,) * 4 for level in (2, 0, 3, 1, 4)]  # the middle first, then its halves
    assert ranking.configurations[:5] == uniform
    assert not set(ranking.configurations[5:]) & set(uniform)


def test_what_other_workers_measure_is_not_ranked_again(measured):
    problem = Problem(grid(4), records_of(measured), DIRECTIONS, None)
    first = rank(problem, Acquisition.DEFAULT).configurations[0]
    again = rank(problem, Acquisition.DEFAULT, pending=np.array([first]))
    assert first not in again.configurations
