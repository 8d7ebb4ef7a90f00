import pickle
import sqlite3
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.storage import open_storage
from tests.databases import BACKENDS, fresh_database

WORKER = """
import sys, optuna
from sgquant_optuna.storage import open_storage
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(
    storage=open_storage(sys.argv[1]), study_name="s", load_if_exists=True,
    sampler=optuna.samplers.RandomSampler(),
)
study.optimize(lambda trial: trial.suggest_int("x", 0, 9), n_trials=5)
"""


def work(url: str, processes: int, script: str = WORKER) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", script, url], stderr=subprocess.PIPE)
        for _ in range(processes)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()


def test_the_default_is_a_file_under_the_current_folder(tmp_path):
    open_storage()
    assert (tmp_path / "storage" / "sgquant.db").exists()


def test_the_environment_names_another(tmp_path, monkeypatch):
    monkeypatch.setenv("SGQUANT_STORAGE", f"sqlite:///{tmp_path}/other.db")
    open_storage()
    assert (tmp_path / "other.db").exists()


@pytest.mark.parametrize("form", ["{}", "sqlite:///{}"])
def test_a_file_or_a_url_of_sqlite_is_made_with_its_folder(form, tmp_path):
    path = tmp_path / "new" / "folder" / "s.db"
    open_storage(form.format(path))
    assert path.exists()


def test_sqlite_writes_ahead_and_locks_at_the_beginning(tmp_path):
    storage = open_storage(tmp_path / "s.db")
    for opened in (storage, pickle.loads(pickle.dumps(storage))):
        with opened.engine.begin() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            other = sqlite3.connect(tmp_path / "s.db", timeout=0)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
            other.close()


def test_trials_of_killed_processes_are_found_by_their_heartbeat(tmp_path):
    storage = open_storage(tmp_path / "s.db")
    assert storage.heartbeat_interval == 60
    assert storage.grace_period == 300


@pytest.mark.parametrize("backend", BACKENDS)
def test_processes_that_start_together_share_a_fresh_database(backend, tmp_path):
    with fresh_database(backend, tmp_path) as url:
        work(url, processes=4)
        study = optuna.load_study(study_name="s", storage=open_storage(url))
        assert [trial.number for trial in study.trials] == list(range(20))
        assert all(trial.state.is_finished() for trial in study.trials)


def test_an_enqueued_trial_is_taken_once(tmp_path):
    url = f"sqlite:///{tmp_path}/s.db"
    study = optuna.create_study(storage=open_storage(url), study_name="s")
    for value in range(40):
        study.enqueue_trial({"x": value % 10}, user_attrs={"tag": value})
    script = WORKER.replace("n_trials=5", "n_trials=10")
    work(url, processes=4, script=script)
    done = [trial for trial in study.trials if "tag" in trial.user_attrs]
    assert len(study.trials) == 40
    assert sorted(trial.user_attrs["tag"] for trial in done) == list(range(40))
    assert all(t.value == t.user_attrs["tag"] % 10 for t in done)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense://x", "expected a URL such as sqlite:///"),
        ("sqlite://", "expected a file for SQLite, got one in memory"),
        ("sqlite:///:memory:", "expected a file for SQLite, got one in memory"),
        ("postgresql://user:secret@127.0.0.1:1/db", r"storage postgresql.*user:\*\*\*@"),
        ("mysql://user:secret@127.0.0.1:1/db", r"storage mysql.*user:\*\*\*@"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_told_in_one_line(url, message):
    with pytest.raises(StorageError, match=message) as error:
        open_storage(url)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_missing_file_is_not_made_for_reading(tmp_path):
    with pytest.raises(StorageError, match="there is no such file"):
        open_storage(tmp_path / "none.db", create=False)
    assert not (tmp_path / "none.db").exists()


def test_a_file_that_is_no_database_is_told_and_kept(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("dear diary, " * 100)
    with pytest.raises(StorageError, match="file is not a database"):
        open_storage(path)
    assert path.read_text().startswith("dear diary")


def test_a_folder_that_is_a_file_is_told(tmp_path):
    Path("taken").write_text("")
    with pytest.raises(StorageError, match="cannot make its folder"):
        open_storage("taken/s.db")


def test_a_missing_driver_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StorageError, match=r"pip install 'sgquant-optuna\[postgresql\]'"):
        open_storage("postgresql://127.0.0.1/db")


def test_a_database_of_another_version_says_how_to_upgrade(tmp_path):
    open_storage(tmp_path / "s.db")
    engine = sa.create_engine(f"sqlite:///{tmp_path}/s.db")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'v2.6.0.a'"))
    engine.dispose()
    with pytest.raises(StorageError, match="optuna storage upgrade --storage sqlite:///"):
        open_storage(tmp_path / "s.db")


FOREIGN = (
    ["CREATE TABLE users (name TEXT)"],
    ["CREATE TABLE trials (id INTEGER)", "CREATE TABLE studies (title TEXT)"],
    ["CREATE TABLE alembic_version (version_num TEXT)", "CREATE TABLE users (name TEXT)"],
    ["CREATE TABLE version_info (version TEXT)"],
)


def tables_of(url):
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return set(sa.inspect(connection).get_table_names())


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("statements", FOREIGN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_database_of_another_program_is_refused_and_left_alone(
    backend, statements, create, tmp_path
):
    with fresh_database(backend, tmp_path) as url:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        before = tables_of(url)
        with pytest.raises(StorageError, match="that of another program") as told:
            open_storage(url, create=create)
        assert "\n" not in str(told.value)
        assert tables_of(url) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_database_stays_empty_when_it_is_only_read(backend, tmp_path):
    with fresh_database(backend, tmp_path) as url:
        (tmp_path / "study.db").touch()
        with pytest.raises(StorageError, match="no studies yet; sgquant search or init makes one"):
            open_storage(url, create=False)
        assert not tables_of(url)
        open_storage(url)
        assert open_storage(url, create=False).get_all_studies() == []


def test_tables_whose_making_was_cut_off_are_completed(tmp_path):
    engine = open_storage(tmp_path / "s.db").engine
    with engine.begin() as connection:
        for table in ("version_info", "alembic_version", "trials"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
    engine.dispose()
    optuna.create_study(storage=open_storage(tmp_path / "s.db"), study_name="s").add_trial(
        optuna.trial.create_trial(value=1.0)
    )
