import logging
import subprocess
import sys

import optuna
import pytest

from sgquant_optuna.search.study_creation import create_study
from sgquant_optuna.search.trial_log import log_trial
from sgquant_optuna.study.limit import Limit
from sgquant_optuna.study.trial_result import TrialResult
from tests.hand_made import measured, new_study
from tests.pretended_trainings import pretend


@pytest.fixture
def study(objective, monkeypatch):
    """Trials of 1, 8 and 1 bits, where one bit loses 40 points and 5 are allowed."""
    pretend(objective, monkeypatch, {1: 40.0, 8: 1.0})
    study = create_study(objective, storage=optuna.storages.InMemoryStorage(), study_name="mine")
    for width in (1, 8, 1):
        study.enqueue_trial(objective.search_space.uniform_params(width))
    return study


def texts(records):
    return [record.getMessage().rpartition(",")[0] for record in records]


def expected(study):
    one, eight, _ = (f"{trial.user_attrs['saving']:.1f}x" for trial in study.trials)
    refused = (
        f"saving {one}, drop 50.00 and at most 94.85 points, not feasible (89.85 points above "
        f"the limit, so its value is a penalty)"
    )
    return [
        f"Trial 0: {refused}; none feasible yet",
        f"Trial 1: saving {eight}, drop 1.00 and at most 1.90 points, feasible; "
        f"best saving {eight}",
        f"Trial 2: {refused}; best saving {eight}",
    ]


def test_each_trial_says_whether_it_is_feasible(study, objective, caplog):
    with caplog.at_level(logging.INFO, logger="sgquant_optuna"):
        study.optimize(objective, n_trials=3)
    ours = [record for record in caplog.records if record.name.startswith("sgquant_optuna")]
    assert texts(ours) == expected(study)


def test_a_plain_script_sees_it_as_it_sees_optunas_lines(study, objective):
    seen = []
    handler = logging.Handler()
    handler.emit = seen.append
    logging.getLogger("optuna").addHandler(handler)
    optuna.logging.set_verbosity(optuna.logging.INFO)
    study.optimize(objective, n_trials=3)
    logging.getLogger("optuna").removeHandler(handler)
    ours = [record for record in seen if record.name == "optuna.sgquant_optuna"]
    assert texts(ours) == expected(study)
    assert len(seen) == 6  # each before the line of Optuna


def test_optunas_verbosity_silences_it(study, objective, capsys, caplog):
    study.optimize(objective, n_trials=3)
    assert "Trial" not in capsys.readouterr().err and not caplog.records


def test_with_a_budget_the_least_drop_is_told(caplog):
    study, limit = new_study(budget=70_000.0), Limit(budget_bytes=70_000.0)
    with caplog.at_level(logging.INFO, logger="sgquant_optuna"):
        for width in (8, 4):
            result = TrialResult.of(measured((width,) * 4, 0.25).user_attrs)
            log_trial(study.ask(), result, [result], limit)
    assert [record.getMessage().rpartition(",")[0] for record in caplog.records] == [
        "Trial 0: saving 4.0x, drop 0.25 and at most 0.25 points, not feasible (0.058 MB above "
        "the budget, so its value is a penalty); none feasible yet",
        "Trial 1: saving 8.0x, drop 0.25 and at most 0.25 points, feasible; best drop 0.25 points",
    ]


@pytest.mark.parametrize("configured", ["", "logging.basicConfig(level=logging.INFO)"])
def test_no_line_comes_twice(configured):
    code = f"""
import logging, types
{configured}
import optuna
from sgquant_optuna.search.trial_log import log_trial
from tests.hand_made import measured, new_study
from sgquant_optuna.study.limit import Limit
from sgquant_optuna.study.trial_result import TrialResult
study = new_study()
trial = study.ask()
limit = Limit(max_drop=0.5)
log_trial(trial, TrialResult.of(measured((4, 4, 4, 4), 0.25).user_attrs), [], limit)
"""
    err = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stderr
    line = "Trial 0: saving 8.0x, drop 0.25 and at most 0.25 points, feasible; best saving 8.0x"
    assert err.count(line) == 1
