"""Functions that the worker processes of the tests run, in a module that they can import."""

import os
import signal
import time
import uuid
import warnings
from datetime import datetime

import optuna
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages._rdb.models import TrialHeartbeatModel

from sgquant_optuna.sampler import rounds
from sgquant_optuna.sampler.history import History
from tests.sampler.toy_study import SCALES, memory_of, new_sampler, objective, set_constraint

# Each parameter of a trial is several transactions, so workers that only race one another get few.
SMALL_WIDTHS = tuple(range(1, 17))
SMALL_SPACE = {f"site{i}": CategoricalDistribution(SMALL_WIDTHS) for i in range(2)}


def small_objective(trial):
    params = {name: trial.suggest_categorical(name, SMALL_WIDTHS) for name in SMALL_SPACE}
    violation = sum(a * 2.0**-b for a, b in zip(SCALES, params.values(), strict=False)) - 1.0
    set_constraint(trial, violation)
    return memory_of(params)


def open_storage(url, *, keeps_connections=False, **options):
    """Open a storage; SQLite begins at once, so that its read-check-write is atomic."""
    if not url.startswith("sqlite"):
        pool = {} if keeps_connections else {"poolclass": sa.NullPool}
        return RDBStorage(url, engine_kwargs=pool, **options)
    storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}}, **options)

    @sa.event.listens_for(storage.engine, "connect")
    def _connect(dbapi, record):
        dbapi.isolation_level = None
        cursor = dbapi.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    @sa.event.listens_for(storage.engine, "begin")
    def _begin(connection):
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    storage.engine.dispose()
    return storage


def with_heartbeat(url):
    return open_storage(
        url,
        keeps_connections=True,
        heartbeat_interval=1,
        grace_period=60,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
    )


def num_heartbeats(storage):
    with storage.engine.connect() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(TrialHeartbeatModel))


def let_heartbeats_go_stale(storage):
    """Date back all heartbeats, as if the grace period had passed."""
    with storage.engine.begin() as connection:
        connection.execute(sa.update(TrialHeartbeatModel).values(heartbeat=datetime(2000, 1, 1)))


def _be_quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


def work(url, n_trials, seed, claims=True, seconds=0.01):
    """Measure ``n_trials`` trials in one process."""
    _be_quiet()
    if not claims:  # see finished trials alone, as samplers do that claim nothing
        rounds.CLAIM_KEY = f"private:{uuid.uuid4()}"
        History.occupied_by_others = lambda history, number: set(history._occupied)
        rounds._num_reserved = lambda history, number, lost: 0
    storage = open_storage(url, keeps_connections=True)
    sampler = new_sampler(seed, SMALL_SPACE, n_sample=200, n_measure=10)
    study = optuna.load_study(study_name="s", storage=storage, sampler=sampler)

    def slow_objective(trial):
        value = small_objective(trial)
        time.sleep(seconds)
        return value

    study.optimize(slow_objective, n_trials=n_trials)
    storage.engine.dispose()


def work_until_killed(url, n_trials):
    """Measure some trials and kill this process with SIGKILL in the middle of the next one."""
    _be_quiet()
    storage = with_heartbeat(url)
    study = optuna.load_study(study_name="s", storage=storage, sampler=new_sampler())
    done, heartbeats = 0, num_heartbeats(storage)

    def fatal_objective(trial):
        nonlocal done
        value = objective(trial)
        if done == n_trials:
            while num_heartbeats(storage) < heartbeats + n_trials + 1:
                time.sleep(0.02)  # the first heartbeat of this trial
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        return value

    study.optimize(fatal_objective, n_trials=n_trials + 1)
