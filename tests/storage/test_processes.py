import os
import subprocess
import sys

import optuna
import pytest
from optuna.trial import TrialState

from sgquant_optuna.storage import open_storage
from sgquant_optuna.storage.attributes import BIRTH_ATTR, PROCESS_ATTR
from sgquant_optuna.storage.processes import (
    birth_signature,
    holder_name,
    is_gone,
    is_signed_here,
    is_signer_gone,
    process_mark,
    process_name,
    process_of,
    sign,
    unsign,
)

# Optuna says so of ask(), with which these tests stand for a worker.
pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")
needs_proc = pytest.mark.skipif(process_mark() is None, reason="needs /proc")


def dead_mark():
    """Mark of a process that had this process id before."""
    *space, pid, started = process_mark().split(" ")
    return " ".join([*space, pid, str(int(started) - 1)])


@pytest.fixture
def study(tmp_path):
    return optuna.create_study(storage=open_storage(tmp_path / "s.db"))


def running(**attrs):
    trial = optuna.trial.create_trial(state=TrialState.RUNNING, system_attrs=attrs)
    trial.number = 3
    return trial


def test_a_name_is_host_and_process_id_and_a_holder_has_one_of_its_own():
    assert process_name().endswith(f":{os.getpid()}")
    assert holder_name() != holder_name()
    assert process_of(holder_name()) == process_name()


@needs_proc
def test_a_mark_tells_whether_its_process_is_gone():
    assert process_mark() == process_mark()
    assert not is_gone(process_mark())
    assert is_gone(dead_mark())


@needs_proc
@pytest.mark.parametrize("mark", ["", "another word", "kernel pid:[1] 12 words too many"])
def test_a_process_that_cannot_be_seen_from_here_is_not_gone(mark):
    assert not is_gone(mark)
    assert not is_gone(f"other {dead_mark()}")  # of another machine


@needs_proc
@pytest.mark.skipif(os.getuid() != 0, reason="needs two users")
def test_a_process_of_another_user_that_proc_hides_is_not_gone():
    """With hidepid=2, /proc shows a user the own processes alone."""
    code = (
        "import os, sys; from pathlib import Path; from sgquant_optuna.storage import processes\n"
        "mark, dead = sys.argv[1:]\n"
        "space = processes._process_space()\n"
        "processes._process_space = lambda: space\n"
        "os.setuid(65534)\n"
        "print(processes.is_gone(mark), end=' ')\n"
        "processes._PROC = Path('/hidden')\n"
        "print(processes.is_gone(mark), processes.is_gone(dead))\n"
    )
    ended = subprocess.Popen(["true"])
    ended.wait()
    space, _, started = process_mark().rsplit(" ", maxsplit=2)
    arguments = [sys.executable, "-c", code, process_mark(), f"{space} {ended.pid} {started}"]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False", "True"]


@needs_proc
def test_a_trial_that_is_signed_is_of_this_process_until_it_is_unsigned(study):
    trial = study.ask()
    assert not is_signed_here(study.trials[0])
    sign(trial)
    assert is_signed_here(study.trials[0])
    assert study.trials[0].system_attrs[PROCESS_ATTR] == [0, process_mark()]
    assert is_signer_gone(study.trials[0]) is False
    unsign(study._storage, trial)
    assert not is_signed_here(study.trials[0])


@needs_proc
def test_the_signature_of_the_trial_counts_before_that_of_its_creation():
    alive, dead = process_mark(), dead_mark()
    birth = {BIRTH_ATTR: ["token", dead]}
    assert is_signer_gone(running(**{**birth, PROCESS_ATTR: [3, alive]})) is False
    assert is_signer_gone(running(**birth)) is True
    # Of a machine without marks: its creation does not count any more.
    assert is_signer_gone(running(**{**birth, PROCESS_ATTR: [3, None]})) is None


@needs_proc
def test_a_copy_does_not_take_over_the_signature_of_the_trial_that_it_repeats():
    copied = {PROCESS_ATTR: [2, process_mark()]}
    assert not is_signed_here(running(**copied))
    assert is_signer_gone(running(**copied)) is None
    assert is_signer_gone(running(**{**copied, BIRTH_ATTR: ["token", dead_mark()]})) is True


def test_nobody_has_signed_a_trial_that_is_queued_or_of_a_machine_without_marks(monkeypatch):
    assert birth_signature("token", runs_here=False) == ["token", None]
    assert birth_signature("token", runs_here=True) == ["token", process_mark()]
    assert is_signer_gone(running()) is None
    assert is_signer_gone(running(**{BIRTH_ATTR: ["token", None]})) is None
    monkeypatch.setattr("sgquant_optuna.storage.processes.process_mark", lambda: None)
    assert not is_signed_here(running(**{PROCESS_ATTR: [3, None]}))
