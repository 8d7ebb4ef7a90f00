"""Time that a second worker saves: a study by one worker, and by two, with one thread each.

Each run creates a new study (``sgquant init``), starts the workers together, and measures from the
start of the first trial to the end of the last, as the study records them. So the start of Python
and the import of torch are excluded. Runs alternate; the median of each kind counts. The CPU time
of the processes is printed too: on a machine with other work it is the reliable figure.

    python benchmarks/workers.py            # 60 trials, 3 runs each
    python benchmarks/workers.py --quick    # 12 trials, once each
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import optuna
from optuna.trial import TrialState

from sgquant_optuna.study.loading import load_study

LIMIT = 0.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--root", default="data")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.trials, arguments.runs = 12, 1
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    seconds: dict[int, list[float]] = {1: [], 2: []}
    cpu: dict[int, list[float]] = {1: [], 2: []}
    for index in range(arguments.runs):
        for workers in (1, 2) if index % 2 == 0 else (2, 1):
            wall, used = measure(workers, arguments.trials, arguments.dataset, arguments.root)
            seconds[workers].append(wall)
            cpu[workers].append(used)
            print(f"{workers} workers: {wall:.1f} s, {used:.1f} s of CPU", flush=True)
    one, two = (statistics.median(seconds[workers]) for workers in (1, 2))
    spent = statistics.median(cpu[2]) / statistics.median(cpu[1])
    print(
        f"{arguments.trials} trials on {arguments.dataset}: 1 worker {one:.1f} s, 2 workers "
        f"{two:.1f} s, ratio {two / one:.2f} (limit {LIMIT}), CPU ratio {spent:.2f}"
    )


def measure(workers: int, trials: int, dataset: str, root: str) -> tuple[float, float]:
    """Return seconds from the first trial's start to the last one's end, and seconds of CPU."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory() as folder:
        storage = str(Path(folder) / "s.db")
        program = [sys.executable, "-m", "sgquant_optuna"]
        options = ["--dataset", dataset, "--root", root, "--storage", storage]
        subprocess.run(
            [*program, "init", *options, "--n-trials", str(trials)],
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        before = cpu_of_children()
        join = [*program, "worker", "--storage", storage, "--root", root, "--quiet"]
        running = [subprocess.Popen(join, env=environment) for _ in range(workers)]
        for process in running:
            if process.wait() != 0:
                raise SystemExit(f"a worker ended with exit code {process.returncode}")
        used = cpu_of_children() - before
        complete = load_study(storage=storage).get_trials(states=(TrialState.COMPLETE,))
    assert len(complete) == trials
    assert len({tuple(sorted(trial.params.items())) for trial in complete}) == trials
    starts = [trial.datetime_start for trial in complete if trial.datetime_start]
    ends = [trial.datetime_complete for trial in complete if trial.datetime_complete]
    return (max(ends) - min(starts)).total_seconds(), used


def cpu_of_children() -> float:
    """Return the CPU seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
