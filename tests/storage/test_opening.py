import importlib
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.storage import (
    open_storage,
)
from tests.databases import BACKENDS, SERVERS, fresh_database

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


@pytest.mark.parametrize("name", ["{braces}", "100%", "o'brien", "a b", "ü"])
def test_any_name_of_a_folder_serves(name, tmp_path):
    path = tmp_path / name / "s.db"
    storage = open_storage(path)
    optuna.create_study(storage=storage, study_name="s")
    assert path.exists()
    again = pickle.loads(pickle.dumps(storage))
    assert [study.study_name for study in again.get_all_studies()] == ["s"]


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
def test_a_storage_that_cannot_be_opened_is_reported_in_one_line(url, message):
    with pytest.raises(StorageError, match=message) as error:
        open_storage(url)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_missing_file_is_not_made_for_reading(tmp_path):
    with pytest.raises(StorageError, match="there is no such file"):
        open_storage(tmp_path / "none.db", create=False)
    assert not (tmp_path / "none.db").exists()


def test_a_file_that_is_no_database_is_reported_and_kept(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("dear diary, " * 100)
    with pytest.raises(StorageError, match="file is not a database"):
        open_storage(path)
    assert path.read_text().startswith("dear diary")


def test_a_folder_that_is_a_file_is_reported(tmp_path):
    Path("taken").write_text("")
    with pytest.raises(StorageError, match="cannot make its folder"):
        open_storage("taken/s.db")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(StorageError, match="expected a file for SQLite, got a folder"):
        open_storage(tmp_path)


READ = """
import os, sys
from sgquant_optuna.storage import open_storage
from sgquant_optuna.exceptions import StorageError
if os.geteuid() == 0:  # who may write everything
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    open_storage(sys.argv[1])
except StorageError as error:
    print(error)
"""


def test_a_file_that_may_only_be_read_is_reported():
    with tempfile.TemporaryDirectory() as name:  # that of pytest is closed to other users
        folder = Path(name)
        path = folder / "s.db"
        open_storage(path)
        path.chmod(0o444)
        folder.chmod(0o555)
        command = [sys.executable, "-c", READ, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        folder.chmod(0o755)
    assert "cannot be written (permission denied)" in done.stdout


def test_a_missing_driver_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StorageError, match=r"pip install 'sgquant-optuna\[postgresql\]'"):
        open_storage("postgresql://127.0.0.1/db")


def test_an_unknown_driver_says_what_to_install():
    with pytest.raises(StorageError, match="its driver nodriver is missing; pip install nodriver"):
        open_storage("postgresql+nodriver://host/db")


def test_a_database_of_another_version_says_how_to_upgrade(tmp_path):
    open_storage(tmp_path / "s.db")
    engine = sa.create_engine(f"sqlite:///{tmp_path}/s.db")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'v2.6.0.a'"))
    engine.dispose()
    with pytest.raises(StorageError, match="optuna storage upgrade --storage sqlite:///"):
        open_storage(tmp_path / "s.db")


def test_a_newer_schema_says_to_update_optuna(tmp_path):
    storage = open_storage(tmp_path / "s.db")
    with storage.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'v99'"))
    with pytest.raises(StorageError, match="made by a newer Optuna; pip install -U optuna"):
        open_storage(tmp_path / "s.db")


def test_intervals_are_checked(tmp_path):
    with pytest.raises(ValueError, match="0 < heartbeat_interval < grace_period"):
        open_storage(tmp_path / "s.db", heartbeat_interval=60, grace_period=60)


SECRET = "s3cr3t/p@ss:word%"


QUOTED = "s3cr3t%2Fp%40ss%3Aword%25"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@host:port/db",  # not quoted, so the port is no number
        f"postgresql://me:{QUOTED}@127.0.0.1:1/db",
        f"postgresql://me@127.0.0.1:1/db?password={QUOTED}",
        f"mysql://me:{QUOTED}@127.0.0.1:1/db",
        f"oracle://me:{QUOTED}@host/db",
        f"grpc://me:{QUOTED}@127.0.0.1:1",
        f"postgresql+nodriver://me:{QUOTED}@host/db",
    ],
)
def test_a_password_is_never_shown(url, caplog, capsys):
    with pytest.raises(StorageError) as error:
        open_storage(url)
    told = f"{error.value} {error.value!r} {caplog.text} {capsys.readouterr()}"
    assert "s3cr3t" not in told and "ss:word" not in told


@pytest.mark.parametrize("backend", [name for name in SERVERS if name in BACKENDS])
def test_a_wrong_login_and_a_missing_database_are_reported(backend):
    server = sa.make_url(os.environ[SERVERS[backend]])
    for wrong in (
        server.set(username="nobody_here", password="s3cr3t"),
        server.set(database="nothing_here"),
    ):
        with pytest.raises(StorageError, match=rf"storage {backend}.*nothing_here|nobody") as told:
            open_storage(wrong.render_as_string(hide_password=False))
        assert "s3cr3t" not in str(told.value) and "\n" not in str(told.value)


SERVERS_HERE = [name for name in SERVERS if name in BACKENDS]


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
def test_opening_waits_for_a_server_that_restarts_if_asked_to(
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
def test_a_wrong_name_is_reported_at_once_by_who_would_wait(backend, monkeypatch):
    monkeypatch.setattr("time.sleep", None)  # any pause fails
    wrong = sa.make_url(os.environ[SERVERS[backend]]).set(database="nothing_here")
    with pytest.raises(StorageError, match="nothing_here"):
        open_storage(wrong.render_as_string(hide_password=False), wait=60)
