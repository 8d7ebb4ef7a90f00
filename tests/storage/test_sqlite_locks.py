"""Who holds the write lock of an SQLite file."""

import signal
import subprocess
import sys
import threading

import optuna
import pytest

from sgquant_optuna.storage import open_storage, sqlite_locks, waits
from sgquant_optuna.storage.sqlite_locks import lock_holder

WRITER = """
import sqlite3, sys
one = sqlite3.connect(sys.argv[1], isolation_level=None)
one.execute("BEGIN IMMEDIATE")
print("writes", flush=True)
sys.stdin.readline()
"""

pytestmark = pytest.mark.skipif("not sqlite_locks._LOCKS.exists()", reason="needs Linux")


@pytest.fixture
def study(tmp_path):
    return optuna.create_study(storage=open_storage(tmp_path / "s.db"))


@pytest.fixture
def writer(study, tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "s.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writes\n"
        yield process
        process.kill()


def test_the_process_that_writes_is_named(writer, tmp_path):
    assert lock_holder(tmp_path / "s.db") == f"process {writer.pid} holds the lock"
    writer.kill()
    writer.wait()
    assert lock_holder(tmp_path / "s.db") is None


def test_who_waits_for_a_paused_process_is_told_so(study, writer, caplog, monkeypatch):
    monkeypatch.setattr(waits, "LONG", 0.3)
    monkeypatch.setattr(waits, "_LOOK", 0.05)
    monkeypatch.setattr(waits, "_watch", waits._Watch())
    writer.send_signal(signal.SIGSTOP)
    threading.Timer(1.0, writer.kill).start()
    study.set_user_attr("x", 1)
    assert f"process {writer.pid} holds the lock and is paused" in caplog.text
    assert study.user_attrs == {"x": 1}


def test_a_system_that_does_not_tell_is_no_error(writer, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_locks, "_LOCKS", tmp_path / "none")
    assert lock_holder(tmp_path / "s.db") is None
    assert lock_holder(tmp_path / "other.db") is None
