"""A study is deleted under its workers: each ends at once, with one line and exit code 3."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from sgquant_optuna.exceptions import StudyDeletedError
from sgquant_optuna.search.preparation import prepare_search
from sgquant_optuna.search.study_creation import create_study
from sgquant_optuna.search.workers.worker import run_worker
from sgquant_optuna.storage import open_storage
from sgquant_optuna.storage.databases import StudyDatabase
from sgquant_optuna.study.loading import load_study
from tests.databases import BACKENDS, Proxy, fresh_database
from tests.search.workers.test_script_processes import GUARDED, start, wait_for
from tests.small_search import a_plan, artifacts_of, join

NAME = "gcn-digits-lwq"
LINE = f"error: study '{NAME}' was deleted, or renamed; its workers end\n"


def start_worker(url: str, folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sgquant_optuna", "worker", "--quiet", *options]
    given = {"SGQUANT_STORAGE": url, "SGQUANT_ARTIFACTS": str(folder / "artifacts")}
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), **given},
        stderr=subprocess.PIPE,
        text=True,
    )


def workers_of(study) -> set[str]:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {trial.user_attrs["worker"] for trial in complete}


def delete_when_both_work(storage) -> None:
    study = load_study(storage=storage)
    wait_for(lambda: len(workers_of(study)) == 2)
    optuna.delete_study(study_name=study.study_name, storage=storage)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_workers_end_within_ten_seconds_by_one_line_each(backend, tmp_path):
    with fresh_database(backend, tmp_path) as url:
        storage = open_storage(url)
        prepare_search(a_plan(n_trials=5000), storage, artifacts_of(tmp_path))
        workers = [start_worker(url, tmp_path) for _ in range(2)]
        delete_when_both_work(storage)
        deleted = time.monotonic()
        told = [worker.communicate(timeout=30)[1] for worker in workers]
        assert time.monotonic() - deleted < 10
        storage.engine.dispose()
    assert told == [LINE, LINE]
    assert [worker.returncode for worker in workers] == [3, 3]


def test_the_parent_of_two_workers_says_it_once_and_restarts_none(tmp_path):
    storage = open_storage(tmp_path / "s.db")
    prepare_search(a_plan(n_trials=5000), storage, artifacts_of(tmp_path))
    parent = start_worker(str(tmp_path / "s.db"), tmp_path, "--n-jobs", "2")
    delete_when_both_work(storage)
    assert parent.communicate(timeout=30)[1] == LINE
    assert parent.returncode == 3


@pytest.mark.slow
def test_the_driver_of_a_dask_cluster_says_it_once(tmp_path):
    distributed = pytest.importorskip("distributed")
    storage = open_storage(tmp_path / "s.db")
    prepare_search(a_plan(n_trials=5000), storage, artifacts_of(tmp_path))
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None
    ) as cluster:
        where = ("--engine", "dask", "--scheduler", cluster.scheduler_address)
        driver = start_worker(str(tmp_path / "s.db"), tmp_path, "--n-jobs", "2", *where)
        delete_when_both_work(storage)
        assert driver.communicate(timeout=60)[1] == LINE
    assert driver.returncode == 3


def test_a_script_in_two_processes_raises_it_once(tmp_path):
    script = start(tmp_path, GUARDED, trials=5000, epochs=1)

    def study():
        try:
            return load_study("mine", storage=tmp_path / "study.db")
        except Exception:  # not made yet
            return None

    made = wait_for(study)
    wait_for(lambda: len(workers_of(made)) == 2)
    optuna.delete_study(study_name="mine", storage=made._storage)
    out, err = script.communicate(timeout=30)
    assert (script.returncode, out) == (1, "")
    assert "restart" not in err and "error: " not in err
    assert (
        err.strip()
        .splitlines()[-1]
        .endswith("StudyDeletedError: study 'mine' was deleted, or renamed; its workers end")
    )


CALLS = (
    "_create_new_trial",
    "set_trial_system_attr",
    "write_batch",
    "set_trial_state_values",
    "get_trial",
    "_get_trials",
    "get_study_user_attrs",
)


@pytest.mark.parametrize("call", CALLS)
def test_whatever_call_meets_the_deletion_tells_it(call, folder, monkeypatch, caplog):
    joined = join(folder)
    run_worker(joined, n_trials=1)
    original, deleted = getattr(StudyDatabase, call), []

    def after_deletion(self, *arguments, **options):
        if not deleted:
            deleted.append(True)
            optuna.delete_study(study_name=NAME, storage=open_storage(folder / "s.db"))
        return original(self, *arguments, **options)

    monkeypatch.setattr(StudyDatabase, call, after_deletion)
    caplog.set_level(logging.WARNING, "sgquant_optuna")
    began = time.monotonic()
    with pytest.raises(StudyDeletedError, match=f"study '{NAME}' was deleted"):
        run_worker(joined)
    assert time.monotonic() - began < 5
    assert deleted and not caplog.messages


def test_a_worker_behind_a_proxy_is_told(folder):
    proxy = Proxy(folder / "s.db")
    proxy.start()
    try:
        joined = join(folder, proxy.url)

        def delete(study, trial):
            optuna.delete_study(study_name=NAME, storage=open_storage(folder / "s.db"))

        with pytest.raises(StudyDeletedError, match=NAME):
            run_worker(joined, callbacks=[delete])
        joined.study._storage.close()
    finally:
        proxy.kill()


def test_optimize_in_python_is_told_and_another_study_of_the_name_is_no_excuse(
    objective, tmp_path
):
    storage = open_storage(tmp_path / "s.db")
    study = create_study(objective, storage=storage, study_name="mine", seed=0)

    def replace(study, trial):
        optuna.delete_study(study_name="mine", storage=storage)
        optuna.create_study(storage=storage, study_name="mine", directions=objective.directions)

    with pytest.raises(StudyDeletedError, match="study 'mine' was deleted"):
        study.optimize(objective, n_trials=5, callbacks=[replace])
    fresh = create_study(objective, storage=storage, study_name="mine", seed=0)
    with pytest.raises(ZeroDivisionError):  # what is no deletion stays as it is
        fresh.optimize(lambda trial: 1 / 0, n_trials=1)
