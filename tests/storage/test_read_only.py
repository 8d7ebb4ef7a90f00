"""What only reads an SQLite file never waits for a writer."""

import sqlite3

import optuna
import pytest

from sgquant_optuna.storage import open_storage
from sgquant_optuna.storage.databases import read_from


@pytest.fixture
def written(tmp_path):
    """A study of a database in which another process writes without an end."""
    study = optuna.create_study(storage=open_storage(tmp_path / "s.db"), study_name="s")
    study.optimize(lambda trial: trial.suggest_int("x", 0, 9), n_trials=1)
    writer = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE studies SET study_name = 'uncommitted'")
    yield study
    writer.close()


@pytest.mark.timeout(20)
def test_readers_see_the_last_commit_at_once(written, tmp_path):
    storage = open_storage(tmp_path / "s.db", create=False)
    (summary,) = optuna.get_all_study_summaries(storage)
    assert summary.study_name == "s"
    opened = optuna.load_study(study_name="s", storage=storage)
    assert len(opened.trials) == 1
    assert opened.best_trial.number == 0
    assert opened.user_attrs == {}
    assert storage._get_stale_trial_ids(opened._study_id) == []
    assert read_from(
        storage, lambda one: one.exec_driver_sql("SELECT study_name FROM studies").all()
    )


def test_a_writer_is_refused_while_another_writes(written, tmp_path, monkeypatch):
    monkeypatch.setattr("sgquant_optuna.storage.databases._SQLITE_TIMEOUT", 0.2)
    storage = open_storage(tmp_path / "s.db", retry_seconds=0.5)
    with pytest.raises(optuna.exceptions.StorageInternalError):
        storage.set_study_user_attr(written._study_id, "x", 1)
