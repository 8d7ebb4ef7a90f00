"""A signal ends a process in time, whatever it waits for."""

import signal
import subprocess
import sys
import time

import pytest

HUNG = """
import sys, time
from sgquant_optuna.search.workers.stopping import Stopped, Stopper
grace = float(sys.argv[1])
stopper = Stopper(grace, margin=0.5)
def hang():
    print("hangs", flush=True)
    {hang}
with stopper.installed():
    try:
        with stopper.protected(), stopper.trial():
            hang()
    except Stopped:
        hang()
"""
# A call that no signal interrupts, and the cleaning up that hangs after one that is.
IN_C = """
    import sqlite3
    one = sqlite3.connect(sys.argv[2], isolation_level=None)
    one.execute("BEGIN IMMEDIATE")
    sqlite3.connect(sys.argv[2], timeout=60, isolation_level=None).execute("BEGIN IMMEDIATE")
"""
IN_PYTHON = "time.sleep(60)"


@pytest.mark.parametrize("hang", [IN_C, IN_PYTHON], ids=["in C", "in Python"])
@pytest.mark.parametrize("grace", [0.0, 1.0])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_hangs_ends_soon_after_the_grace_time(hang, grace, number, tmp_path):
    command = [sys.executable, "-c", HUNG.format(hang=hang), str(grace), str(tmp_path / "s.db")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "hangs\n"
        started = time.monotonic()
        process.send_signal(number)
        assert process.wait(20) == 128 + number
        assert grace + 0.4 < time.monotonic() - started < grace + 2
        assert "something still waits" in process.stderr.read()
