import io

import optuna
import pytest
from rich.console import Console

from sgquant_optuna.exceptions import StudyNotFoundError
from sgquant_optuna.search.progress import SearchProgress
from sgquant_optuna.search.study_creation import create_study
from sgquant_optuna.study.early_stop import record_timeout
from sgquant_optuna.study.plan import SearchPlan
from tests.pretended_trainings import pretend


@pytest.fixture
def study(objective, monkeypatch):
    """Trials of 8, 4 and 1 bits, of which the last is not feasible."""
    pretend(objective, monkeypatch, {1: 50.0, 4: 1.0, 8: 1.0})
    study = create_study(objective, storage=optuna.storages.InMemoryStorage(), study_name="mine")
    for width in (8, 4, 1):
        study.enqueue_trial(objective.search_space.uniform_params(width))
    return study


def test_the_bar_counts_trials_and_shows_the_best_saving(study, objective):
    file = io.StringIO()
    with SearchProgress(study, total=3, console=Console(file=file, width=100)) as progress:
        study.optimize(objective, n_trials=3, callbacks=[progress])
    best = study.trials[1].user_attrs["saving"]
    assert "3/3" in file.getvalue() and f"best saving {best:.1f}x" in file.getvalue()


def test_the_bar_says_why_the_search_ended_early(study, objective):
    file = io.StringIO()
    plan = SearchPlan(n_trials=9)
    plan.save(study)
    with SearchProgress(study, total=9, console=Console(file=file, width=100)) as progress:
        study.optimize(objective, n_trials=3, callbacks=[progress])
        record_timeout(study, plan)
    assert "the search ended early: its time was over" in file.getvalue()


def test_the_bar_takes_the_place_of_optunas_lines(study, objective, capsys):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    with pytest.raises(KeyboardInterrupt):
        with SearchProgress(study, total=3, console=Console(file=io.StringIO())) as progress:
            study.optimize(objective, n_trials=1, callbacks=[progress])
            raise KeyboardInterrupt
    assert "Trial 0" not in capsys.readouterr().err
    assert optuna.logging.get_verbosity() == optuna.logging.INFO


def test_a_study_of_another_objective_has_no_savings():
    with pytest.raises(StudyNotFoundError, match="expected a study of QuantizationObjective"):
        SearchProgress(optuna.create_study(), total=3)
