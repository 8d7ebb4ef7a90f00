"""Joint batches of real processes on real databases."""

import multiprocessing
import os
import time

import optuna
import pytest
from optuna.trial import TrialState

from sgquant_optuna.sampler.claims import Claim
from tests.sampler.toy_study import new_sampler, objective
from tests.sampler.worker_processes import (
    let_heartbeats_go_stale,
    open_storage,
    with_heartbeat,
    work,
    work_until_killed,
)


def configuration(trial):
    return tuple(sorted(trial.params.items()))


def create(url, storage=None):
    return optuna.create_study(study_name="s", storage=storage or open_storage(url))


# Workers are forked from a clean process that has imported everything once: they start in
# milliseconds, and yet share no thread, lock or connection with the test.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # or their spinning threads starve one another
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "optuna.storages._rdb.storage",
        "sgquant_optuna.sampler.sampler",
        "psycopg",
        "pymysql",
    ]
)


def start(target, *arguments):
    process = PROCESSES.Process(target=target, args=arguments)
    process.start()
    return process


def join(processes):
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def duplicates(study):
    configurations = [configuration(t) for t in study.trials]
    return len(configurations) - len(set(configurations))


def rounds(study):
    """The set of configurations of each round, of trials that were measured."""
    sets = {}
    for trial in study.get_trials(states=(TrialState.COMPLETE,)):
        claim = Claim.of(trial.system_attrs)
        sets.setdefault(claim.round, set()).add(claim.index)
    return sets


@pytest.mark.slow
def test_four_processes_never_measure_a_configuration_twice(database_url):
    study = create(database_url)
    # Different seeds, and one without: it must not depend on them.
    join([start(work, database_url, 40, seed) for seed in (0, 0, 1, None)])
    assert len(study.trials) == 160
    assert duplicates(study) == 0


@pytest.mark.slow
def test_without_claims_they_do(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    study = create(url)
    join([start(work, url, 40, 0, False) for _ in range(4)])
    assert duplicates(study) > 20


@pytest.mark.slow
def test_a_late_joiner_continues_the_same_rounds(database_url):
    study = create(database_url)
    early = start(work, database_url, 18, 0, True, 0.1)
    while len(study.trials) < 3:
        time.sleep(0.05)
    late = start(work, database_url, 8, 99)
    join([early, late])
    assert len(study.trials) == 26
    assert duplicates(study) == 0
    claims = [Claim.of(t.system_attrs) for t in study.trials]
    assert {c.opening.seed for c in claims if c.opening} <= {0, 99}
    by_round = {}
    for claim in claims:
        by_round.setdefault(claim.round, []).append(claim)
    # Nobody waited for the other, and no round was started anew: only the last may be short.
    assert sorted(by_round) == list(range(len(by_round)))
    assert all(len(by_round[r]) >= 5 for r in sorted(by_round)[:-1])


@pytest.mark.slow
def test_rounds_are_those_of_an_uninterrupted_run_after_three_kills(database_url):
    reference = optuna.create_study(sampler=new_sampler())
    reference.optimize(objective, n_trials=20)
    storage = with_heartbeat(database_url)
    study = create(database_url, storage)
    for _ in range(3):  # once in each of the rounds 0, 1 and 2
        process = start(work_until_killed, database_url, 6)
        process.join(60)
        assert process.exitcode == -9
        let_heartbeats_go_stale(storage)
    study.sampler = new_sampler()
    while len(study.get_trials(states=(TrialState.COMPLETE,))) < 20:
        study.optimize(objective, n_trials=1)
    assert len(study.get_trials(states=(TrialState.FAIL,))) == 3
    assert rounds(study) == rounds(reference)
    storage.engine.dispose()


def test_a_killed_trial_without_heartbeat_blocks_nothing(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    study = create(url)
    process = start(work_until_killed, url, 3)
    process.join(60)
    assert process.exitcode == -9
    study.sampler = new_sampler()
    study.optimize(objective, n_trials=12)
    dead = [t for t in study.trials if t.state == TrialState.RUNNING]
    assert len(dead) == 1
    assert duplicates(study) == 0
    assert Claim.of(study.trials[-1].system_attrs).round >= 1
