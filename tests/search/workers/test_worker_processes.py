import os
import signal
import time

import pytest

from sgquant_optuna.search.workers import worker_processes
from sgquant_optuna.search.workers.worker_processes import WorkerProcesses, threads_for


def run(tmp_path, monkeypatch, script, count=2, *, after_start=None, **options):
    """Run a shell script in the place of the worker command; return what became of it."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    monkeypatch.setattr(worker_processes, "_FIRST_PAUSE", 0.01)
    lines = []
    workers = WorkerProcesses(
        ["STUDY"], count, environment={"FOLDER": str(tmp_path)}, show=lines.append, **options
    )
    deadline = time.monotonic() + 30
    while workers.watch():
        assert time.monotonic() < deadline
        if after_start is not None and after_start(workers):
            after_start = None
        time.sleep(0.02)
    return workers, lines


def test_all_run_with_their_arguments_their_environment_and_a_share_of_the_cores(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(9)), raising=False)
    workers, lines = run(tmp_path, monkeypatch, 'echo "$6 $OMP_NUM_THREADS $FOLDER" >&2', count=4)
    assert workers.exit_code == 0
    assert lines == [f"STUDY 2 {tmp_path}"] * 4


def test_threads_are_at_least_one_and_what_the_user_says_counts(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert [threads_for(count) for count in (1, 2, 3)] == [2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert threads_for(3) == 7


def test_a_killed_process_is_started_again(tmp_path, monkeypatch):
    workers, _ = run(
        tmp_path, monkeypatch, "[ -e $FOLDER/once ] || { touch $FOLDER/once; kill -9 $$; }", 1
    )
    assert workers.exit_code == 0
    assert workers._slots[0].restarts == 1


def test_one_that_dies_again_and_again_is_given_up_and_the_exit_code_tells(
    tmp_path, monkeypatch, caplog
):
    workers, _ = run(tmp_path, monkeypatch, "echo x >> $FOLDER/starts; exit 7", 1, max_restarts=2)
    assert workers.exit_code == 1
    assert (tmp_path / "starts").read_text().count("x") == 3
    assert "ended by exit code 7; giving it up" in caplog.text


def test_what_died_before_a_quiet_hour_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_processes, "_QUIET", 0.0)
    code = "echo x >> $FOLDER/starts; [ $(wc -l < $FOLDER/starts) -ge 4 ] || exit 7"
    workers, _ = run(tmp_path, monkeypatch, code, 1, max_restarts=1)
    assert workers.exit_code == 0
    assert workers._slots[0].restarts == 1


def test_bad_input_is_told_once_and_not_tried_again(tmp_path, monkeypatch):
    workers, lines = run(
        tmp_path, monkeypatch, "echo x >> $FOLDER/starts; echo 'error: no' >&2; exit 2", 3
    )
    assert workers.exit_code == 2
    assert lines == ["error: no"]
    assert (tmp_path / "starts").read_text().count("x") <= 3


def test_a_replacement_that_is_refused_leaves_the_others_alone(tmp_path, monkeypatch):
    """As one is that starts while the database restarts."""
    script = """
        if mkdir $FOLDER/works; then until [ -e $FOLDER/done ]; do sleep 0.02; done; exit 0; fi
        echo >> $FOLDER/starts
        case $(wc -l < $FOLDER/starts) in 1) kill -9 $$;; 2) exit 2;; *) touch $FOLDER/done;; esac
    """
    workers, _ = run(tmp_path, monkeypatch, script)
    assert workers.exit_code == 0
    assert sorted(slot.restarts for slot in workers._slots) == [0, 2]


def test_a_signal_is_passed_on_and_ends_all(tmp_path, monkeypatch):
    def kill_when_all_run(workers):
        if len(list(tmp_path.glob("run*"))) < 2:
            return False
        with workers.forwarding_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        return True

    script = (
        "trap 'touch $FOLDER/told$$; exit 143' TERM; touch $FOLDER/run$$; "
        "while true; do sleep 0.05; done"
    )
    workers, _ = run(tmp_path, monkeypatch, script, after_start=kill_when_all_run)
    assert workers.exit_code == 128 + signal.SIGTERM
    assert len(list(tmp_path.glob("told*"))) == 2


def test_a_paused_process_is_killed_after_the_grace_time(tmp_path, monkeypatch):
    def stop(workers):
        if not (tmp_path / "paused").exists():
            return False
        workers.stop()
        return True

    script = "touch $FOLDER/paused; kill -STOP $$"
    started = time.monotonic()
    workers, _ = run(tmp_path, monkeypatch, script, 1, after_start=stop, grace=0.1)
    assert time.monotonic() - started < 2.5
    assert workers.exit_code == 128 + signal.SIGTERM


def test_no_process_is_refused():
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        WorkerProcesses([], 0, environment={})


def test_a_process_that_would_miss_ctrl_c_while_it_starts_ends_all_the_same(tmp_path, monkeypatch):
    def interrupt(workers):
        if (tmp_path / "on").exists():
            workers.stop(signal.SIGINT)
            return True
        return False

    began = time.monotonic()
    workers, _ = run(
        *(tmp_path, monkeypatch, "trap '' INT; touch $FOLDER/on; exec sleep 20", 1),
        after_start=interrupt,
    )
    assert time.monotonic() - began < 4  # it is killed after 6.65 s
    assert workers.exit_code == 130


def test_a_signal_that_comes_during_a_launch_reaches_what_is_launched(tmp_path, monkeypatch):
    launch = WorkerProcesses._launch

    def interrupted(workers, slot):
        process = launch(workers, slot)
        if slot.restarts:
            workers.stop(signal.SIGINT)
        return process

    monkeypatch.setattr(WorkerProcesses, "_launch", interrupted)
    began = time.monotonic()
    workers, _ = run(
        tmp_path,
        monkeypatch,
        "[ -e $FOLDER/once ] && exec sleep 20; touch $FOLDER/once; exit 7",
        1,
    )
    assert time.monotonic() - began < 4
    assert workers.exit_code == 130
