"""The recipes of ``storage/README.md`` for backups that are taken while workers run."""

import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from sgquant_optuna.search.workers.budget import optimize_within_budget
from sgquant_optuna.storage import open_storage
from tests.databases import BACKENDS, fresh_database

ENDLESS = """
import sys, optuna
from sgquant_optuna.search.workers.budget import optimize_within_budget
from sgquant_optuna.storage import open_storage
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.load_study(storage=open_storage(sys.argv[1]), study_name="s")
optimize_within_budget(study, lambda trial: trial.suggest_float("x", 0, 1), lambda: 10**6)
"""


@contextmanager
def opened(url):
    storage = open_storage(url, retry_seconds=10)
    try:
        yield optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
    finally:
        storage.engine.dispose()  # a file that is open must not be replaced


@contextmanager
def two_workers(url):
    """Run two until the block ends; they have told some trials when it begins."""
    with opened(url):
        pass
    workers = [subprocess.Popen([sys.executable, "-c", ENDLESS, url]) for _ in range(2)]
    try:
        while len(complete(url)) < 4:
            assert all(worker.poll() is None for worker in workers)
            time.sleep(0.05)
        yield
        assert all(worker.poll() is None for worker in workers)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def complete(url):
    with opened(url) as study:
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return {trial.number: (trial.params, trial.values) for trial in trials}


def is_a_whole_study_that_resumes(url, before, after):
    """Check a restored study against what was complete before and after its backup was taken."""
    kept = complete(url)
    assert before.items() <= kept.items() <= after.items()
    budget = len(kept) + 3
    with opened(url) as study:
        # Those that ran are put back at once: their processes were of this machine, and are gone.
        optimize_within_budget(study, lambda trial: trial.suggest_float("x", 0, 1), lambda: budget)
        assert [trial.number for trial in study.trials] == list(range(len(study.trials)))
        assert all(trial.state.is_finished() for trial in study.trials)
    assert len(complete(url)) == budget


def by_the_command(source, target):
    subprocess.run(["sqlite3", source, f".backup {target}"], check=True)


def by_the_driver(source, target):
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def by_vacuum(source, target):
    with closing(sqlite3.connect(source)) as connection:
        connection.execute("VACUUM INTO ?", [str(target)])


@pytest.mark.parametrize("back_up", [by_the_command, by_the_driver, by_vacuum])
def test_a_backup_of_sqlite_is_a_whole_study_that_resumes(back_up, tmp_path):
    if back_up is by_the_command and shutil.which("sqlite3") is None:
        pytest.skip("needs the program sqlite3")
    source, backup = tmp_path / "s.db", tmp_path / "backup.db"
    with two_workers(f"sqlite:///{source}"):
        before = complete(f"sqlite:///{source}")
        back_up(source, backup)
    after = complete(f"sqlite:///{source}")
    # Restored in place: the log that the killed workers left would be taken for the backup's.
    shutil.copy(backup, source)
    for suffix in ("-wal", "-shm"):
        source.with_name(source.name + suffix).unlink(missing_ok=True)
    is_a_whole_study_that_resumes(f"sqlite:///{source}", before, after)


def login(url):
    """Return the options with which the programs of a server reach it."""
    letters = {"postgresql": "hpU", "mysql": "hPu"}[url.get_backend_name()]
    values = (url.host, url.port, url.username)
    return [f"-{x}{value}" for x, value in zip(letters, values, strict=True) if value]


def programs(*names):
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


@pytest.mark.skipif("postgresql" not in BACKENDS, reason="needs TEST_POSTGRESQL_URL")
def test_a_backup_of_postgresql_is_a_whole_study_that_resumes(tmp_path, monkeypatch):
    programs("pg_dump", "pg_restore")
    dump = tmp_path / "backup.dump"
    with (
        fresh_database("postgresql", tmp_path) as source,
        fresh_database("postgresql", tmp_path) as target,
    ):
        old, new = sa.make_url(source), sa.make_url(target)
        monkeypatch.setenv("PGPASSWORD", old.password or "")
        with two_workers(source):
            before = complete(source)
            options = [*login(old), "--format=custom", f"--file={dump}"]
            dumped = subprocess.run(
                ["pg_dump", *options, old.database], capture_output=True, text=True
            )
            if "server version mismatch" in dumped.stderr:
                pytest.skip("the server is newer than pg_dump")
            assert dumped.returncode == 0, dumped.stderr
        after = complete(source)
        restore = ["pg_restore", *login(new), f"--dbname={new.database}", str(dump)]
        subprocess.run(restore, check=True)
        is_a_whole_study_that_resumes(target, before, after)


@pytest.mark.skipif("mysql" not in BACKENDS, reason="needs TEST_MYSQL_URL")
def test_a_backup_of_mariadb_is_a_whole_study_that_resumes(tmp_path, monkeypatch):
    programs("mariadb-dump", "mariadb")
    dump = tmp_path / "backup.sql"
    with fresh_database("mysql", tmp_path) as source, fresh_database("mysql", tmp_path) as target:
        old, new = sa.make_url(source), sa.make_url(target)
        monkeypatch.setenv("MYSQL_PWD", old.password or "")
        with two_workers(source), dump.open("wb") as file:
            before = complete(source)
            command = ["mariadb-dump", *login(old), "--single-transaction", old.database]
            subprocess.run(command, check=True, stdout=file)
        after = complete(source)
        with dump.open("rb") as file:
            subprocess.run(["mariadb", *login(new), new.database], check=True, stdin=file)
        is_a_whole_study_that_resumes(target, before, after)
