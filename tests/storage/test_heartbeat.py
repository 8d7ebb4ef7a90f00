import os
import signal
import time
from multiprocessing import get_context

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from sgquant_optuna.search.workers.budget import optimize_within_budget
from sgquant_optuna.storage import heartbeats_from_creation, open_storage
from tests.databases import BACKENDS, fresh_database

# Optuna says so of each ask, which stands here for a process that is killed.
pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")

BEATS = {"heartbeat_interval": 1, "grace_period": 2}


def make_study(url):
    return optuna.create_study(
        storage=open_storage(url, **BEATS), study_name="s", load_if_exists=True
    )


def beats(study):
    engine = sa.create_engine(study._storage._backend.engine.url, poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        return connection.execute(sa.text("SELECT count(*) FROM trial_heartbeats")).scalar_one()


def test_a_trial_killed_as_it_began_is_found(tmp_path):
    study = make_study(tmp_path / "s.db")
    with heartbeats_from_creation():
        study.ask()  # and its process is killed here
    study.ask()  # by hand, so nobody beats for it
    time.sleep(3.1)
    optuna.storages.fail_stale_trials(study)
    assert [trial.state for trial in study.trials] == [
        TrialState.FAIL,
        TrialState.RUNNING,
        TrialState.WAITING,
    ]


def test_trials_of_a_shared_budget_beat_from_the_beginning(tmp_path):
    study = make_study(tmp_path / "s.db")
    seen = []

    class Watching(optuna.samplers.RandomSampler):
        def before_trial(self, study, trial):  # before Optuna's own first heartbeat
            seen.append(beats(study))

    study.sampler = Watching()
    optimize_within_budget(study, lambda trial: 0.0, lambda: 2)
    assert seen == [1, 2]


def begin_a_trial_and_die(path):
    study = optuna.load_study(storage=open_storage(path), study_name="s")
    study._storage.create_new_trial(study._study_id)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_killed_between_beginning_and_signing_is_replaced_at_once(tmp_path):
    path = tmp_path / "s.db"
    optuna.create_study(storage=open_storage(path), study_name="s")
    worker = get_context("fork").Process(target=begin_a_trial_and_die, args=(path,))
    worker.start()
    worker.join()
    study = optuna.load_study(storage=open_storage(path), study_name="s")
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
    started = time.monotonic()
    optimize_within_budget(study, lambda trial: 0.0, lambda: 1)
    assert time.monotonic() - started < 20  # a heartbeat would take five minutes
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_age_of_a_heartbeat_is_reported_by_the_clock_of_the_database(
    backend, tmp_path, monkeypatch
):
    with fresh_database(backend, tmp_path) as url:
        study = make_study(url)
        with heartbeats_from_creation():
            study.ask()
        real = time.time
        for skew in (-86_400, 86_400):  # workers a day apart
            monkeypatch.setattr(time, "time", lambda skew=skew: real() + skew)
            optuna.storages.fail_stale_trials(study)
            assert [trial.state for trial in study.trials] == [TrialState.RUNNING]


def test_trials_of_a_journal_beat_too(tmp_path):
    url = f"journal:///{tmp_path}/s.log"
    study, other = make_study(url), make_study(url)
    dead = study.ask()
    study._storage.record_heartbeat(dead._trial_id)
    optuna.storages.fail_stale_trials(other)  # the first look starts its watch
    time.sleep(1.2)
    study._storage.record_heartbeat(dead._trial_id)
    optuna.storages.fail_stale_trials(other)
    time.sleep(1.2)  # longer than the grace since the first look, but it beat in between
    optuna.storages.fail_stale_trials(other)
    assert dead.number == 0 and other.trials[0].state == TrialState.RUNNING
    time.sleep(1.2)
    optuna.storages.fail_stale_trials(other)
    assert [trial.state for trial in other.trials] == [TrialState.FAIL, TrialState.WAITING]
