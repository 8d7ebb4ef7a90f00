"""A study is deleted while workers write: nothing of it stays, and no other study is touched."""

import threading

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import get_storage
from optuna.storages._rdb import models

from sgquant_optuna.storage import heartbeats_from_creation, open_storage
from tests.databases import Proxy

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")


def rows(storage) -> dict[str, int]:
    """Rows of each table that has some."""
    with storage.engine.connect() as connection:
        counts = {
            name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for name, table in models.BaseModel.metadata.tables.items()
        }
    return {name: count for name, count in counts.items() if count}


def measure(trial):
    trial.suggest_int("x", 0, 9)
    trial.set_user_attr("a", 1)
    trial.report(1.0, 0)
    return 1.0


def test_all_rows_of_a_study_go_and_those_of_others_stay(storage, monkeypatch):
    monkeypatch.setattr("sgquant_optuna.storage.deleting._MAX_IDS", 2)
    kept = optuna.create_study(storage=storage, study_name="kept")
    kept.optimize(measure, n_trials=1)
    before = rows(storage)
    study = optuna.create_study(storage=storage, study_name="s")
    study.set_user_attr("a", 1)
    study.set_metric_names(["v"])
    with heartbeats_from_creation():
        study.optimize(measure, n_trials=5)
    assert rows(storage)["trials"] == 6
    optuna.delete_study(study_name="s", storage=storage)
    assert rows(storage) == before
    assert len(kept.trials) == 1
    with pytest.raises(KeyError):
        storage.delete_study(study._study_id)


def test_nothing_stays_of_a_study_that_workers_write_to(storage):
    nothing = rows(storage)
    study = optuna.create_study(storage=storage, study_name="s")
    url = storage.engine.url.render_as_string(hide_password=False)
    written, failed = threading.Semaphore(0), []

    def work(opened):
        mine = optuna.load_study(study_name="s", storage=opened)
        try:
            while True:
                trial = mine.ask()
                opened.record_heartbeat(trial._trial_id)
                measure(trial)
                mine.tell(trial, 1.0)
                written.release()
        except Exception as error:
            failed.append(error)

    own = [open_storage(url) for _ in range(3)]
    threads = [threading.Thread(target=work, args=(opened,)) for opened in own]
    for thread in threads:
        thread.start()
    for _ in range(6):
        assert written.acquire(timeout=30)
    storage.delete_study(study._study_id)
    for thread in threads:
        thread.join(timeout=30)
    for opened in own:
        opened.engine.dispose()
    assert len(failed) == 3  # none goes on
    assert rows(storage) == nothing


def test_a_write_that_comes_after_the_deletion_leaves_no_row(storage):
    nothing = rows(storage)
    study = optuna.create_study(storage=storage, study_name="s")
    trial = study.ask()._trial_id
    storage.delete_study(study._study_id)
    storage.record_heartbeat(trial)  # of a thread: it says nothing
    for write in (
        lambda: storage.set_trial_user_attr(trial, "a", 1),
        lambda: storage.set_trial_system_attr(trial, "a", 1),
        lambda: storage.set_trial_intermediate_value(trial, 0, 1.0),
        lambda: storage.set_trial_state_values(trial, optuna.trial.TrialState.COMPLETE, [1.0]),
        lambda: storage.create_new_trial(study._study_id),
        lambda: storage.set_study_system_attr(study._study_id, "a", 1),
    ):
        with pytest.raises((KeyError, sa.exc.IntegrityError)):
            write()
    assert rows(storage) == nothing


def test_a_deletion_whose_answer_was_lost_is_done(storage, monkeypatch):
    study = optuna.create_study(storage=storage, study_name="s")
    from sgquant_optuna.storage import databases

    delete, calls = databases.delete_rows, []

    def lost(study_id, session):
        calls.append(study_id)
        delete(study_id, session)
        session.commit()
        error = sa.exc.OperationalError("COMMIT", None, Exception("server closed"))
        error.connection_invalidated = True
        raise error

    monkeypatch.setattr(databases, "delete_rows", lost)
    storage.delete_study(study._study_id)
    assert len(calls) == 2 and storage.get_all_studies() == []


def test_a_proxy_and_the_cache_of_the_dashboard_delete_by_the_same_door(tmp_path, monkeypatch):
    file = tmp_path / "s.db"
    storage = open_storage(file)
    nothing = rows(storage)
    cached = get_storage(storage)  # what the dashboard is given
    doors = []
    own = type(storage).delete_study
    monkeypatch.setattr(
        type(storage), "delete_study", lambda self, key: (doors.append(key), own(self, key))
    )
    study = optuna.create_study(storage=cached, study_name="s")
    cached.delete_study(study._study_id)
    assert doors == [study._study_id] and rows(storage) == nothing
    proxy = Proxy(file)
    proxy.start()
    try:
        remote = open_storage(proxy.url)
        study = optuna.create_study(storage=remote, study_name="s")
        study.ask()
        remote.delete_study(study._study_id)
        assert rows(storage) == nothing
        with pytest.raises(KeyError):
            study.ask()
    finally:
        remote.close()
        proxy.kill()


def test_numbers_of_a_deleted_study_are_never_given_again(storage):
    optuna.create_study(storage=storage, study_name="kept").optimize(measure, n_trials=1)
    old = optuna.create_study(storage=storage, study_name="s")
    old.optimize(measure, n_trials=3)
    running = old.ask()
    optuna.delete_study(study_name="s", storage=storage)
    new = optuna.create_study(storage=storage, study_name="s")
    assert new._study_id > old._study_id
    new.optimize(measure, n_trials=2)
    assert [trial.number for trial in new.trials] == [0, 1]
    assert min(trial._trial_id for trial in new.trials) > running._trial_id
    before = new.trials
    with pytest.raises(KeyError):
        running.set_user_attr("a", 2)
    with pytest.raises((KeyError, sa.exc.IntegrityError)):
        old.optimize(measure, n_trials=1)
    assert new.trials == before
