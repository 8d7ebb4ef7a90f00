"""Time that a study database adds to a trial, as a share of a trial of one second.

A trial is created by our sampler, and writes 12 parameters, 10 attributes, the constraint, the
heartbeat and the result.

    python benchmarks/storage.py [--quick]

SQLite is always measured, PostgreSQL and MariaDB where ``TEST_POSTGRESQL_URL`` and
``TEST_MYSQL_URL`` name servers. Trials train nothing. The time of the same trials in memory, which
is that of our sampler and of Optuna, is subtracted. The processor time of the worker is printed
too: on a busy machine, the other columns include the waiting.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from rich.console import Console
from rich.table import Table

from sgquant_optuna.sampler import SGQuantSampler
from sgquant_optuna.storage import open_storage, write_together

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.databases import BACKENDS, fresh_database  # noqa: E402

SPACE: dict[str, BaseDistribution] = {
    f"layer{i}/embedding": CategoricalDistribution((1, 2, 4, 8)) for i in range(12)
}
LIMIT = 0.05  # of a trial of one second


def objective(trial: optuna.Trial) -> float:
    with write_together():  # as our objective does
        bits = [trial.suggest_categorical(name, (1, 2, 4, 8)) for name in SPACE]
    with write_together():
        for number in range(10):
            trial.set_user_attr(f"attribute {number}", number / 7)
    trial.storage.set_trial_system_attr(trial._trial_id, "constraints", [-1.0])
    return float(sum(bits))


def seconds_a_trial(storage: BaseStorage, n_trials: int) -> tuple[list[float], float]:
    """Return the time of each trial, and the mean processor time of one."""
    study = optuna.create_study(
        storage=storage, sampler=SGQuantSampler(SPACE, known_objective=total, seed=0)
    )
    seconds, started = [], time.process_time()
    for _ in range(n_trials):
        begun = time.perf_counter()
        study.optimize(objective, n_trials=1)
        seconds.append(time.perf_counter() - begun)
    return seconds, (time.process_time() - started) / n_trials


def total(params: dict[str, int]) -> float:
    return float(sum(params.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 trials instead of 200")
    n_trials = 20 if parser.parse_args().quick else 200
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    table = Table(title=f"{n_trials} trials of 12 parameters")
    for column in ("database", "median", "largest tenth", "processor", "of a second"):
        table.add_column(column, justify="right" if column != "database" else "left")
    in_memory = 0.0
    for backend in ("in memory", *BACKENDS):
        if backend == "in memory":
            seconds, processor = seconds_a_trial(InMemoryStorage(), n_trials)
            in_memory = statistics.median(seconds)
        else:
            with (
                tempfile.TemporaryDirectory() as folder,
                fresh_database(backend, Path(folder)) as url,
            ):
                seconds, processor = seconds_a_trial(open_storage(url), n_trials)
        cost = statistics.median(seconds) - in_memory
        table.add_row(
            backend,
            f"{1000 * statistics.median(seconds):.1f} ms",
            f"{1000 * statistics.quantiles(seconds, n=10)[-1]:.1f} ms",
            f"{1000 * processor:.1f} ms",
            f"{100 * cost:.1f} %" + ("" if cost <= LIMIT else ": too much"),
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
