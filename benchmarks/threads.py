"""Time of README's ten lines with default threads and with one, while one core is kept busy.

Each run is a process of its own: it imports torch, fits the model and measures trials, as README
does. A second process spins all the while. Runs of both kinds take turns, so that what else the
machine does hits both. Wall time is what a user waits; processor time tells of threads that spin.

    python benchmarks/threads.py            # 20 trials, 5 runs each
    python benchmarks/threads.py --quick    # 4 trials, once each
    python benchmarks/threads.py --large    # a graph on which several threads are worth it
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

LINES = """
import {first}
import {second}
from torch_geometric.nn import GraphSAGE
import sgquant_optuna as sgq

data = sgq.load_graph("digits")
model = GraphSAGE(data.num_features, 32, num_layers=2, out_channels=10)
sgq.fit(model, data, seed=0)
objective = sgq.QuantizationObjective(model, data, max_drop=0.5)
study = sgq.create_study(objective, storage="s.db", study_name="mine", seed=0)
study.optimize(objective, n_trials={trials})
"""
LARGE = """
import {first}
import {second}
import torch
from torch_geometric.data import Data
import sgquant_optuna as sgq

generator = torch.Generator().manual_seed(0)
nodes = 20_000
x = torch.rand(nodes, 500, generator=generator)
edges = torch.randint(nodes, (2, 90_000), generator=generator)
part = torch.arange(nodes) % 3
data = Data(x=x, edge_index=edges, y=torch.arange(nodes) % 4)
data.train_mask, data.val_mask, data.test_mask = (part == at for at in range(3))
model = sgq.make_model("gat", 500, 4, seed=0)
sgq.fit(model, data, sgq.TrainingConfig(epochs={trials}))
"""
# "torch first" is README's order; in the other, the package can set how OpenMP waits.
ORDERS = {"torch first": ("torch", "sgquant_optuna"), "package first": ("sgquant_optuna", "torch")}
BUSY = "while True: pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer trials, one run each")
    parser.add_argument("--large", action="store_true", help="a large graph, without a search")
    parser.add_argument("--trials", type=int, default=20, help="trials; epochs with --large")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quiet-machine", action="store_true", help="keep no core busy")
    options = parser.parse_args()
    if options.quick:
        options.trials, options.runs = 4, 1
    code = LARGE if options.large else LINES

    kinds = [("one thread", 1, "torch first"), *(("default", None, order) for order in ORDERS)]
    wall: dict[str, list[float]] = {}
    used: dict[str, list[float]] = {}
    with nullcontext() if options.quiet_machine else busy_core():
        for index in range(options.runs):
            for name, threads, order in kinds if index % 2 == 0 else reversed(kinds):
                first, second = ORDERS[order]
                lines = code.format(first=first, second=second, trials=options.trials)
                label = name if threads else f"{name}, {order}"
                seconds, processor = measure(lines, threads)
                wall.setdefault(label, []).append(seconds)
                used.setdefault(label, []).append(processor)
                print(f"{label}: {seconds:.1f} s, {processor:.1f} s of CPU", flush=True)
    one = wall["one thread"]
    for label in wall:
        ratio = statistics.median(a / b for a, b in zip(wall[label], one, strict=True))
        print(
            f"{label:24} median {statistics.median(wall[label]):6.1f} s, "
            f"CPU {statistics.median(used[label]):6.1f} s, {ratio:.2f} of one thread's time"
        )


@contextmanager
def busy_core() -> Iterator[None]:
    """Keep one core busy inside the block."""
    spinning = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        spinning.kill()
        spinning.wait()


def measure(lines: str, threads: int | None) -> tuple[float, float]:
    """Return seconds of wall and processor time of a script, in a process of its own."""
    chosen = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: text for name, text in os.environ.items() if name not in chosen}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", lines],
            cwd=folder,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"a run failed:\n{said}")
    return seconds, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
