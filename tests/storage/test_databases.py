import importlib
import os
import pickle
import ssl
import time

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.storage import open_storage
from tests.databases import BACKENDS, SERVERS, fresh_database

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


def test_braces_and_quotes_in_a_path_and_a_name_are_characters(tmp_path):
    path = tmp_path / "it's {SCHEMA} 100%.db"
    name = "o'brien\"; DROP TABLE trials; --"
    made = optuna.create_study(storage=open_storage(path), study_name=name)
    made.optimize(lambda trial: 0.0, n_trials=1)
    assert path.exists()
    assert len(optuna.load_study(storage=open_storage(path), study_name=name).trials) == 1


@pytest.mark.skipif("mysql" not in BACKENDS, reason="needs TEST_MYSQL_URL")
def test_the_certificates_of_the_system_are_not_read_for_each_connection(tmp_path, monkeypatch):
    with fresh_database("mysql", tmp_path) as url:
        study = optuna.create_study(storage=open_storage(url), study_name="s")
        with monkeypatch.context() as patched:
            patched.setattr(ssl, "create_default_context", None)  # any more use of it fails
            study.optimize(lambda trial: trial.suggest_int("x", 0, 9), n_trials=2)
        assert len(study.trials) == 2


SERVERS_HERE = [name for name in SERVERS if name in BACKENDS]
CONNECTIONS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = :name",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = :name",
}


@pytest.mark.parametrize("backend", SERVERS_HERE)
def test_no_connection_to_a_server_is_held_between_two_uses(backend, tmp_path):
    server = sa.create_engine(os.environ[SERVERS[backend]])
    with fresh_database(backend, tmp_path) as url, server.connect() as watching:
        storage = open_storage(url)
        for opened in (storage, pickle.loads(pickle.dumps(storage))):
            study = optuna.create_study(storage=opened, study_name="s", load_if_exists=True)
            study.optimize(lambda trial: trial.suggest_int("x", 0, 9), n_trials=1)
            deadline = time.monotonic() + 10  # a server takes a moment to see that one has left
            query, name = sa.text(CONNECTIONS[backend]), {"name": sa.make_url(url).database}
            while watching.execute(query, name).scalar():
                watching.rollback()  # PostgreSQL's statistics stand still during a transaction
                assert time.monotonic() < deadline, "a connection is held"
                time.sleep(0.02)
    server.dispose()


def restarting(monkeypatch, backend, refusals):
    """Let the first connections go to a port where nobody listens."""
    driver = importlib.import_module({"postgresql": "psycopg", "mysql": "pymysql"}[backend])
    connect, tries = driver.connect, []

    def call(*arguments, **options):
        tries.append(options)
        return connect(*arguments, **options | ({"port": 1} if len(tries) <= refusals else {}))

    monkeypatch.setattr(driver, "connect", call)
    return tries


@pytest.mark.parametrize("backend", SERVERS_HERE)
def test_opening_waits_for_a_server_that_restarts_if_told_to(
    backend, tmp_path, monkeypatch, caplog
):
    with fresh_database(backend, tmp_path) as url:
        with monkeypatch.context() as patched:
            tries = restarting(patched, backend, refusals=3)
            with pytest.raises(StorageError, match="refused|Can't connect"):
                open_storage(url)
            assert len(tries) == 1 and not caplog.records
        restarting(monkeypatch, backend, refusals=3)
        assert open_storage(url, wait=60).get_all_studies() == []
        assert "trying again for up to 60 s" in caplog.text


@pytest.mark.parametrize("backend", SERVERS_HERE)
def test_a_wrong_name_is_told_at_once_by_who_would_wait(backend, monkeypatch):
    monkeypatch.setattr("time.sleep", None)  # any pause fails
    wrong = sa.make_url(os.environ[SERVERS[backend]]).set(database="nothing_here")
    with pytest.raises(StorageError, match="nothing_here"):
        open_storage(wrong.render_as_string(hide_password=False), wait=60)
