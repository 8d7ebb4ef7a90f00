"""Each case is a process of its own: how threads wait is set once, when torch is loaded."""

import os
import subprocess
import sys

import pytest

CHOICES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# 100 loops of two threads; after each, one that spins does so for milliseconds.
WAIT = """
import time
values = torch.ones(1 << 17)
values.add_(1)
before = time.process_time()
for _ in range(100):
    values.add_(1)
    time.sleep(0.005)
print(time.process_time() - before)
"""
TOLD = """
import os, threading
print(os.environ.get("OMP_WAIT_POLICY"), "torch" in sys.modules, [
    thread.name for thread in threading.enumerate() if thread.name == "sgquant-openmp"
])
"""
needs_two_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core: no threads")
uses_libgomp = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libgomp's ways")


def output_of(code, **variables):
    environment = {name: text for name, text in os.environ.items() if name not in CHOICES}
    return subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}"],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_the_package_tells_how_to_wait_before_torch_is_loaded():
    assert output_of(f"import sgquant_optuna{TOLD}") == "PASSIVE False []"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("OMP_WAIT_POLICY", "ACTIVE", "ACTIVE"),
        ("GOMP_SPINCOUNT", "5", "None"),
        ("KMP_BLOCKTIME", "200", "None"),
    ],
)
def test_what_the_user_has_set_stays(name, value, told):
    code = f"import torch, sgquant_optuna{TOLD}"
    assert output_of(code, **{name: value}) == f"{told} True []"


@needs_two_cores
@uses_libgomp
@pytest.mark.parametrize("imports", ["sgquant_optuna, torch", "torch, sgquant_optuna"])
def test_threads_sleep_while_they_wait_whatever_is_imported_first(imports):
    spinning = float(output_of(f"import torch\ntorch.set_num_threads(2){WAIT}"))
    asleep = float(output_of(f"import {imports}\ntorch.set_num_threads(2){WAIT}"))
    assert asleep < spinning / 2


@uses_libgomp
def test_the_number_of_threads_stays():
    code = """
import torch
torch.set_num_threads(3)
before = torch.get_num_threads()
import sgquant_optuna
assert torch.get_num_threads() == before
sgquant_optuna.fit
assert torch.get_num_threads() == before
"""
    output_of(code)


def test_one_thread_needs_nothing():
    told = output_of(f"import torch, sgquant_optuna{TOLD}", OMP_NUM_THREADS="1")
    assert told == "PASSIVE True []"
