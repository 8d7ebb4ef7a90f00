import pickle
import sqlite3
from functools import partial

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from sgquant_optuna.storage import open_storage
from tests.databases import BACKENDS, fresh_database

# Optuna says so of each ask, which stands here for a process that is killed.
pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")


@pytest.fixture(params=BACKENDS)
def study(request, tmp_path):
    with fresh_database(request.param, tmp_path) as url:
        yield optuna.create_study(storage=open_storage(url, retry_seconds=20), study_name="s")


class Breaking:
    """Loses the connection right after a commit, as a server does that restarts."""

    def __init__(self, engine):
        self.engine, self.left = engine, 0

    def __enter__(self):
        self.real = self.engine.dialect.do_commit
        self.engine.dialect.do_commit = self
        return self

    def __exit__(self, *_):
        self.engine.dialect.do_commit = self.real

    def __call__(self, connection):
        self.real(connection)
        if self.left > 0:
            self.left -= 1
            error = sa.exc.OperationalError("COMMIT", None, Exception("server closed"))
            error.connection_invalidated = True
            raise error


@pytest.fixture
def breaking(study):
    with Breaking(study._storage._backend.engine) as hook:
        yield hook


def test_a_trial_whose_creation_was_cut_off_is_made_once(study, breaking):
    breaking.left = 2
    trial = study.ask()
    assert breaking.left == 0
    assert trial.number == 0 and len(study.trials) == 1


def test_a_result_whose_writing_was_cut_off_is_kept_once(study, breaking):
    trial = study.ask()
    trial.suggest_int("x", 0, 9)
    breaking.left = 1
    study.tell(trial, 0.1)
    assert breaking.left == 0
    (stored,) = study.trials
    assert stored.state == TrialState.COMPLETE and stored.value == 0.1


def test_parameters_and_attributes_that_were_cut_off_are_written_once(study, breaking):
    trial = study.ask()
    for write in (
        lambda: trial.suggest_categorical("x", [1, 2]),
        lambda: trial.set_user_attr("worker", "host:1"),
        lambda: study.set_user_attr("plan", "p"),
    ):
        breaking.left = 1
        write()
        assert breaking.left == 0
    assert study.trials[0].user_attrs == {"worker": "host:1"} and "x" in study.trials[0].params
    assert study.user_attrs == {"plan": "p"}


def test_a_result_of_a_trial_that_another_completed_is_refused(study):
    trial = study.ask()
    study.tell(trial.number, 1.0)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        study._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [1.0])


def test_sqlite_writes_ahead_and_locks_at_the_beginning(tmp_path):
    storage = open_storage(tmp_path / "s.db")
    for opened in (storage, pickle.loads(pickle.dumps(storage))):
        with opened.engine.begin() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            other = sqlite3.connect(tmp_path / "s.db", timeout=0)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
            other.close()


def test_braces_and_quotes_in_a_path_and_a_name_are_characters(tmp_path):
    path = tmp_path / "it's {SCHEMA} 100%.db"
    name = "o'brien\"; DROP TABLE trials; --"
    made = optuna.create_study(storage=open_storage(path), study_name=name)
    made.optimize(lambda trial: 0.0, n_trials=1)
    assert path.exists()
    assert len(optuna.load_study(storage=open_storage(path), study_name=name).trials) == 1


def one_parameter(trial, name):
    return trial.suggest_categorical(name, [1, 2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_name_may_hold_anything(backend, tmp_path):
    names = ["o'brien", '"; DROP TABLE studies; --', "ünï%s :x {y}", "a\\b"]
    with fresh_database(backend, tmp_path) as url:
        storage = open_storage(url)
        for name in names:
            study = optuna.create_study(storage=storage, study_name=name)
            study.optimize(partial(one_parameter, name=name), n_trials=1)
        for name in names:
            (trial,) = optuna.load_study(study_name=name, storage=storage).trials
            assert set(trial.params) == {name}
