import os
import pickle
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.storage import open_storage
from tests.databases import BACKENDS, SERVERS, fresh_database

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
def test_a_password_is_never_told(url, caplog, capsys):
    with pytest.raises(StorageError) as error:
        open_storage(url)
    told = f"{error.value} {error.value!r} {caplog.text} {capsys.readouterr()}"
    assert "s3cr3t" not in told and "ss:word" not in told


@pytest.mark.parametrize("backend", [name for name in SERVERS if name in BACKENDS])
def test_a_wrong_login_and_a_missing_database_are_told(backend):
    server = sa.make_url(os.environ[SERVERS[backend]])
    for wrong in (
        server.set(username="nobody_here", password="s3cr3t"),
        server.set(database="nothing_here"),
    ):
        with pytest.raises(StorageError, match=rf"storage {backend}.*nothing_here|nobody") as told:
            open_storage(wrong.render_as_string(hide_password=False))
        assert "s3cr3t" not in str(told.value) and "\n" not in str(told.value)


def test_other_databases_are_refused_by_name():
    with pytest.raises(StorageError, match="one of sqlite, postgresql, mysql, mariadb, grpc"):
        open_storage("mssql://host/db")


def test_an_unknown_driver_says_what_to_install():
    with pytest.raises(StorageError, match="its driver nodriver is missing; pip install nodriver"):
        open_storage("postgresql+nodriver://host/db")


def test_a_newer_schema_says_to_update_optuna(tmp_path):
    storage = open_storage(tmp_path / "s.db")
    with storage.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'v99'"))
    with pytest.raises(StorageError, match="made by a newer Optuna; pip install -U optuna"):
        open_storage(tmp_path / "s.db")


@pytest.mark.parametrize("name", ["{braces}", "100%", "o'brien", "a b", "ü"])
def test_any_name_of_a_folder_serves(name, tmp_path):
    path = tmp_path / name / "s.db"
    storage = open_storage(path)
    optuna.create_study(storage=storage, study_name="s")
    assert path.exists()
    again = pickle.loads(pickle.dumps(storage))
    assert [study.study_name for study in again.get_all_studies()] == ["s"]


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


def test_a_file_that_may_only_be_read_is_told():
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


def test_intervals_are_checked(tmp_path):
    with pytest.raises(ValueError, match="0 < heartbeat_interval < grace_period"):
        open_storage(tmp_path / "s.db", heartbeat_interval=60, grace_period=60)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(StorageError, match="expected a file for SQLite, got a folder"):
        open_storage(tmp_path)


def test_a_journal_needs_a_file_that_can_be_written(tmp_path):
    with pytest.raises(StorageError, match="expected journal:///FILE"):
        open_storage("journal://")
    with pytest.raises(StorageError, match="there is no such file"):
        open_storage(f"journal:///{tmp_path}/none.log", create=False)
    Path("diary.txt").write_text("dear diary\nit rained\n")
    with pytest.raises(StorageError, match="expected an Optuna journal, got another file"):
        open_storage(f"journal:///{tmp_path}/diary.txt")
    with pytest.raises(StorageError, match="cannot be written"):
        open_storage(f"journal:///{tmp_path}/diary.txt/x.log")
