"""Time of `sgquant list`, `status` and `report` on a study of 10,000 trials.

    python benchmarks/reporting.py            # 10,000 trials in SQLite, each command three times
    python benchmarks/reporting.py --quick    # 1,000 trials, each command once

Each command is a process of its own, with one thread, timed from start to end. The first 100
trials are added by Optuna; the others are copies of them, made within the database.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import optuna

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sgquant_optuna.storage import open_storage
from tests.hand_made import WIDTHS, layout, measured, new_study

COMMANDS = (
    ["list"],
    ["status", "big"],
    ["report", "big"],
    ["report", "big", "--format", "json"],
    ["report", "big", "--format", "markdown"],
    ["report", "big", "--format", "csv"],
    ["report", "big", "--format", "html"],
)
_FIRST = 100
_COPIES = (
    ("trial_values", "objective, value, value_type"),
    ("trial_params", "param_name, param_value, distribution_json"),
    ("trial_user_attributes", '"key", value_json'),
    ("trial_system_attributes", '"key", value_json'),
)


def make_study(path: Path, trials: int) -> None:
    """Create a study in SQLite with the given number of trials of random configurations."""
    rng, made = random.Random(0), layout(buckets=4)
    study = new_study(open_storage(path), name="big", planned=trials, made=made)
    for number in range(_FIRST):
        widths = [rng.choice(WIDTHS) for _ in made.sizes]
        drop = rng.expovariate(sum(widths) / len(widths))
        predicted = {"constraint 0": drop - 0.5 + rng.gauss(0, 0.1), "constraint 0 deviation": 0.1}
        notes: dict[str, Any] = {"worker": f"host:{number % 8}", "predicted": predicted}
        study.add_trial(measured(widths, drop, made=made, **notes))
    with sqlite3.connect(path) as database:
        for copy in range(_FIRST, trials, _FIRST):
            database.execute(
                "INSERT INTO trials SELECT trial_id + ?1, number + ?1, study_id, state, "
                "datetime_start, datetime_complete FROM trials WHERE number < ?2",
                (copy, _FIRST),
            )
            for table, columns in _COPIES:
                database.execute(
                    f"INSERT INTO {table} (trial_id, {columns}) SELECT trial_id + ?1, {columns} "
                    f"FROM {table} WHERE trial_id <= ?2",
                    (copy, _FIRST),
                )


def seconds_of(arguments: list[str], path: Path) -> tuple[float, float]:
    """Run one command as a process of its own; return its wall-clock and processor seconds."""
    code = "from sgquant_optuna.cli import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, *arguments, "--storage", str(path)],
        check=True,
        stdout=subprocess.DEVNULL,
        env=environment,
    )
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print one line for each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    trials, repeats = (1000, 1) if quick else (10_000, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "big.db"
        make_study(path, trials)
        print(f"{f'{trials:,} trials; seconds, median of {repeats}':44} wall  processor")
        for arguments in COMMANDS:
            taken = [seconds_of(arguments, path) for _ in range(repeats)]
            wall, processor = (statistics.median(column) for column in zip(*taken, strict=True))
            print(f"{' '.join(['sgquant', *arguments]):40} {wall:8.2f} {processor:10.2f}")


if __name__ == "__main__":
    main()
