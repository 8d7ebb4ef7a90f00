import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from sgquant_optuna.cli import main
from sgquant_optuna.exceptions import SgquantError
from sgquant_optuna.storage import open_storage
from tests.small_search import a_plan

STUDY = "gcn-digits-lwq"


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def no_process_outlives_its_test():
    """A test that fails half way must not leave a worker that fails the next tests too."""
    yield
    while _started:
        process = _started.pop()
        process.kill()
        process.communicate()


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "sgquant_optuna", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _started.append(process)
    return process


def end(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=200)
    assert process.returncode == code, err
    return out, err


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=None, storage=open_storage(folder / "s.db"))


def plan_for(folder: Path, **changes) -> None:
    """Change the plan of the prepared study, before its first trial."""
    a_plan(**changes).save(study_of(folder))
    study = study_of(folder)
    record = study.user_attrs["sgquant:record"]
    epochs = study.user_attrs["sgquant:plan"]["finetuning"]["epochs"]
    record["fingerprint"]["finetuning"]["epochs"] = epochs
    study.set_user_attr("sgquant:record", record)


def wait_for(condition, seconds: float = 120.0):
    """Wait until the condition gives something, and return it: a second look may find less."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def count(folder: Path, state: str) -> int:
    with sqlite3.connect(folder / "s.db", timeout=30) as database:
        query = "SELECT COUNT(*) FROM trials WHERE state = ?"
        return int(database.execute(query, [state]).fetchone()[0])


SLOW = {"finetuning": a_plan().finetuning.with_epochs(10)}


@pytest.mark.slow
def test_two_workers_of_two_folders_finish_one_study_together(folder, tmp_path):
    plan_for(folder, n_trials=12, **SLOW)
    url = f"sqlite:///{folder}/s.db"
    workers = [
        start(tmp_path / name, "worker", "--storage", url, "--root", str(tmp_path / "data"))
        for name in ("here", "there")
    ]
    told = [end(worker)[1] for worker in workers]
    trials = study_of(folder).trials
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(complete) == 12
    assert len({json.dumps(trial.params, sort_keys=True) for trial in complete}) == 12
    # A surplus trial is possible at the end, a failed one is not.
    assert all(trial.state == TrialState.COMPLETE or not trial.params for trial in trials)
    names = {trial.user_attrs["worker"] for trial in complete}
    assert {int(name.rpartition(":")[2]) for name in names} == {w.pid for w in workers}
    assert all(f"{STUDY} " in line for text in told for line in text.splitlines())
    assert len(list((folder / "artifacts").iterdir())) == 1
    # Neither opened the test nodes.
    assert "sgquant:final" not in study_of(folder).user_attrs


@pytest.mark.slow
def test_sigterm_gives_the_trial_back_and_the_next_worker_runs_it(folder, capsys):
    plan_for(folder, n_trials=3, finetuning=a_plan().finetuning.with_epochs(100))
    first = start(folder, "worker", "--storage", "s.db", "--grace", "0")
    wait_for(lambda: count(folder, "RUNNING"))
    wait_for(lambda: study_of(folder).trials[-1].params)
    first.send_signal(signal.SIGTERM)
    _, told = end(first, 128 + signal.SIGTERM)
    assert "released, any worker may run it again" in told
    (released,) = study_of(folder).get_trials(states=(TrialState.WAITING,))
    assert run(capsys, "worker", STUDY, "--storage", str(folder / "s.db"), "--quiet") == (0, "")
    trials = study_of(folder).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert trials[released.number].params == released.params


@pytest.mark.slow
def test_sigkill_costs_the_trial_in_flight_and_the_study_still_completes(folder):
    plan_for(folder, n_trials=10, **SLOW)
    parent = start(folder, "worker", "--storage", "s.db", "--n-jobs", "2")
    wait_for(lambda: count(folder, "COMPLETE") >= 2)
    (victim, *_) = wait_for(
        lambda: [t.user_attrs["worker"] for t in running(folder) if "worker" in t.user_attrs]
    )
    os.kill(int(victim.rpartition(":")[2]), signal.SIGKILL)
    _, told = end(parent)
    assert "ended by SIGKILL; restart 1 of 3" in told
    trials = study_of(folder).trials
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    lost = [t for t in trials if t.state == TrialState.FAIL and "worker" in t.user_attrs]
    assert len(complete) == 10
    assert len(lost) <= 1  # it may have been between two trials
    assert len({json.dumps(trial.params, sort_keys=True) for trial in complete}) == 10


def running(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return study_of(folder).get_trials(states=(TrialState.RUNNING,))


def test_init_twice_at_once_makes_one_study_whose_worker_line_works(tmp_path, capsys):
    options = ("--epochs", "2", "--models", "1", "--finetune-epochs", "1", "--n-trials", "2")
    runs = [
        start(tmp_path / name, "init", *options, "--storage", f"{tmp_path}/s.db")
        for name in ("one", "other")
    ]
    lines = [end(run)[0].splitlines() for run in runs]
    assert lines[0] == lines[1]
    assert lines[0][0].startswith("Study gcn-digits-lwq+cwq+taq is ready for 2 trials")
    study = study_of(tmp_path)
    assert not study.trials
    assert len(list((tmp_path / "artifacts").iterdir())) == 1
    program, *arguments = lines[0][1].split()
    assert program == "sgquant"
    assert run(capsys, *arguments)[0] == 0
    assert len(study_of(tmp_path).trials) == 2


@pytest.mark.slow
def test_search_with_two_jobs_ends_with_the_report(tmp_path):
    options = ("--epochs", "5", "--models", "1", "--finetune-epochs", "3", "--n-trials", "6")
    out, err = end(
        start(tmp_path, "search", *options, "--n-jobs", "2", "--final-seeds", "2", COLUMNS="120")
    )
    assert "6/6" in err and re.search("test, [234] trainings", out)
    storage = open_storage(tmp_path / "storage" / "sgquant.db")
    trials = optuna.load_study(study_name=None, storage=storage).trials
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == 6


def run(capsys, *arguments: str) -> tuple[int, str]:
    try:
        main(list(arguments))
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, capsys.readouterr().err


def test_a_study_without_a_plan_is_refused_by_name(tmp_path, capsys):
    optuna.create_study(study_name="mine", storage=open_storage("s.db"))
    code, err = run(capsys, "worker", "--storage", "s.db")
    assert code == 2
    assert err.count("\n") == 1
    assert "study 'mine': expected one made by `sgquant search` or `init`" in err


@pytest.mark.parametrize(
    ("at_terminal", "options", "expected"),
    [(True, (), 0.0), (False, (), 300.0), (True, ("--wait", "7"), 7.0)],
)
def test_who_sits_at_a_terminal_is_told_at_once_that_no_server_answers(
    at_terminal, options, expected, monkeypatch, capsys
):
    def refuse(url, *, create, wait):
        raise SgquantError(f"refused after {wait} s")

    monkeypatch.setattr("sgquant_optuna.storage.open_storage", refuse)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: at_terminal))
    told = run(capsys, "worker", "--storage", "postgresql://127.0.0.1:1/db", *options)
    assert told == (2, f"error: refused after {expected} s\n")


def test_a_worker_whose_trials_fail_says_why_in_one_line_and_exits_with_1(
    folder, capsys, monkeypatch
):
    def fail(*arguments):
        raise MemoryError("no space")

    monkeypatch.setattr("sgquant_optuna.search.workers.worker._PAUSE", 0.0)
    monkeypatch.setattr("sgquant_optuna.search.objective.QuantizationObjective._measure", fail)
    code, err = run(capsys, "worker", "--storage", str(folder / "s.db"), "--quiet")
    assert code == 1
    assert err == "error: 3 trials failed in a row, the last by MemoryError: no space\n"
    code, err = run(capsys, "worker", "--storage", str(folder / "s.db"))
    assert code == 1
    assert "Traceback" in err and 'raise MemoryError("no space")' in err


def test_another_graph_under_the_data_root_is_refused(folder, capsys, monkeypatch):
    import sgquant_optuna.search.trained_models as trained_models

    load_graph = trained_models.load_graph

    def other(*arguments, **options):
        data = load_graph(*arguments, **options)
        data.x[0, 0] += 1
        return data

    monkeypatch.setattr(trained_models, "load_graph", other)
    code, err = run(capsys, "worker", "--storage", str(folder / "s.db"))
    assert code == 2
    assert "was made with another graph (hash: was" in err


def test_total_raises_the_plan_and_never_lowers_it(folder, capsys):
    storage = str(folder / "s.db")
    code, err = run(capsys, "worker", "--storage", storage, "--total", "3")
    assert code == 2 and "--total: expected at least the plan's 4, got 3" in err
    words = ("--total", "5", "--quiet", "--patience", "0", "--timeout", "600")
    code, err = run(capsys, "worker", "--storage", storage, *words)
    assert code == 0 and not err
    assert len(study_of(folder).trials) == 5
    assert study_of(folder).user_attrs["sgquant:plan"]["patience"] == 0


def test_a_scheduler_and_the_dask_engine_belong_together(folder, capsys):
    for words in (("--engine", "dask"), ("--scheduler", "tcp://127.0.0.1:1")):
        code, err = run(capsys, "worker", "--storage", str(folder / "s.db"), *words)
        assert code == 2 and "--scheduler: expected together with --engine dask" in err


@pytest.mark.slow
def test_a_dask_cluster_runs_the_same_study(folder, capsys):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None
    ) as cluster:
        code, err = run(
            capsys,
            *("worker", "--storage", str(folder / "s.db"), "--engine", "dask"),
            *("--scheduler", cluster.scheduler_address, "--n-jobs", "2"),
        )
    assert code == 0, err
    trials = study_of(folder).trials
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == 4
    names = {trial.user_attrs["worker"] for trial in trials if "worker" in trial.user_attrs}
    assert str(os.getpid()) not in {name.rpartition(":")[2] for name in names}


@pytest.mark.slow
def test_sigterm_of_the_driver_of_a_dask_cluster_gives_the_trials_back(folder):
    distributed = pytest.importorskip("distributed")
    plan_for(folder, n_trials=20, finetuning=a_plan().finetuning.with_epochs(200))
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        driver = start(
            folder,
            *("worker", "--storage", str(folder / "s.db"), "--grace", "0"),
            *("--engine", "dask", "--scheduler", cluster.scheduler_address),
        )
        wait_for(lambda: count(folder, "RUNNING"))
        wait_for(lambda: study_of(folder).trials[-1].params)
        driver.send_signal(signal.SIGTERM)
        _, err = end(driver, 128 + signal.SIGTERM)
        assert "SIGTERM: the workers give back their trials" in err
    assert count(folder, "WAITING") == 1
    assert not count(folder, "RUNNING")
