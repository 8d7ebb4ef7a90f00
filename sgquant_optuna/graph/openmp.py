"""How the threads of torch wait for one another: asleep, so that they take no core from others.

Training on a small graph is thousands of short parallel loops. OpenMP lets a thread that has
finished its part of one spin for milliseconds. Where another process wants the core, threads then
spin while the one that they wait for does not get to run, and two threads are many times slower
than one (``benchmarks/threads.py``).
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from typing import Any

THREAD_NAME = "sgquant-openmp"
_CHOSEN_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_GRAIN = 1 << 15  # values for each thread of torch's loops


def let_threads_sleep() -> None:
    """Let OpenMP threads sleep while they wait, here and in child processes.

    The runtime reads its environment when torch is loaded; where that came first, it is told
    otherwise. Environment variables of the user that say how to wait are kept, and the number of
    threads is left alone. Torch is not imported.
    """
    if any(name in os.environ for name in _CHOSEN_BY_USER):
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "get_num_threads") or torch.get_num_threads() == 1:
        return
    try:
        runtime = ctypes.CDLL(torch._C.__file__)  # and all that it is linked with
        if hasattr(runtime, "kmp_set_blocktime"):  # of LLVM and Intel
            runtime.kmp_set_blocktime(0)
        elif hasattr(runtime, "omp_set_num_threads"):
            _park_a_team(torch, runtime)
    except OSError:  # a build of torch without such a file
        return


def _park_a_team(torch: Any, runtime: ctypes.CDLL) -> None:
    """Give libgomp more threads than cores: from then on, none spins for longer than 100 steps.

    Reference:
        GNU Offloading and Multi Processing Runtime Library, ``GOMP_SPINCOUNT``: where there are
        more OpenMP threads than available CPUs, the count is 100 instead of 300,000.
    """
    parked = threading.Event()

    def park() -> None:
        cores = os.cpu_count() or 1
        try:
            torch.get_num_threads()  # sets the number of this thread at its first call
            runtime.omp_set_num_threads(cores + 1)  # of loops that this thread starts
            torch.zeros((cores + 1) * _GRAIN, device="cpu").add_(1)
        finally:
            parked.set()
        threading.Event().wait()  # its team lives as long as it does

    threading.Thread(target=park, name=THREAD_NAME, daemon=True).start()
    parked.wait()
