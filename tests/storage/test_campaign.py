"""A short run of the campaign whose figures are in ``docs/storage.md``."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.databases import BACKENDS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CAMPAIGN = BENCHMARKS / "campaign.py"


@pytest.mark.slow
@pytest.mark.skipif("mysql" not in BACKENDS, reason="needs MariaDB")
def test_a_paused_worker_and_a_silent_connection_lose_nothing_and_stop_no_other():
    # In a process of its own: it starts a server and many processes.
    options = ["--quick", "--database", "mysql", "--trials", "40"]
    command = [sys.executable, str(CAMPAIGN), "--only", "pause", "stall", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def test_fifty_workers_that_claim_at_once_measure_nothing_twice(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from claims_simulation import simulate

    found = simulate(50, seed=1)
    assert found.complete == found.asked > 90
    assert found.duplicates == 0
    assert found.written > 1  # they did want the same
