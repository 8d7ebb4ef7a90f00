"""A short run of the campaign whose figures are in ``docs/storage.md``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.databases import BACKENDS

CAMPAIGN = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


def survives(which):
    # In a process of its own: it forks, and test processes have threads.
    command = [sys.executable, str(CAMPAIGN), "--quick", "--only", which]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_workers_lose_and_double_nothing(backend):
    survives(backend)


@pytest.fixture
def may_mount(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("root may not mount here")
    subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.slow
@pytest.mark.usefixtures("may_mount")
def test_a_full_disk_loses_and_doubles_nothing():
    survives("disk")
