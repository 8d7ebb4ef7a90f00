"""Kill workers, restart the database, fill the disk: does a study lose anything?

Run ``python benchmarks/chaos.py`` for 80 trials and 20 kills, or ``--quick`` for fewer. SQLite is
always tested, PostgreSQL and MariaDB where ``TEST_POSTGRESQL_URL`` and ``TEST_MYSQL_URL`` name
servers. The server that restarts is a PostgreSQL of its own. The full disk is a small tmpfs, which
needs root. Both are left out where they are not available. Workers run our sampler on an objective
of 50 ms (``pretended_trials.py``).
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning

from sgquant_optuna.search.workers.budget import optimize_within_budget
from sgquant_optuna.storage import open_storage

sys.path.insert(0, str(Path(__file__).parents[1]))
from chaos_disasters import full_disk, integrity  # noqa: E402
from own_servers import own_postgresql, postgresql_program  # noqa: E402
from pretended_trials import (  # noqa: E402
    BEATS,
    compare,
    notes,
    noting_in,
    objective,
    sampler,
)

from tests.databases import BACKENDS, fresh_database  # noqa: E402

STUDY = "chaos"
MORE = 4  # trials of the resumed study
LIMIT = 900.0  # seconds of a campaign

# Forked: a worker is there at once, so that the kills hit trials and not imports.
_processes = get_context("fork")


@dataclass(frozen=True)
class Outcome:
    """Result of a campaign; all fields except the first three should be 0, empty or true."""

    complete: int
    kills: int
    seconds: float
    missing: int
    surplus: int
    unfinished: int
    lost: int
    duplicates: int
    damage: str
    resumed: bool

    @property
    def unharmed(self) -> bool:
        """Whether no result was lost, doubled or damaged."""
        wrong = (self.missing, self.surplus, self.unfinished, self.lost, self.duplicates)
        return not any(wrong) and not self.damage and self.resumed


def work(url: str, journal: Path, n_trials: int) -> None:
    """Run trials until the study has all, and write each result to a file, too."""
    # The handlers of the parent are inherited.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", ExperimentalWarning)
    study = optuna.load_study(
        study_name=STUDY,
        storage=open_storage(url, wait=60.0, **BEATS),  # a worker nobody watches waits
        sampler=sampler(seed=os.getpid()),
    )
    optimize_within_budget(study, objective, lambda: n_trials, callbacks=[noting_in(journal)])


class Crew:
    """Workers that are replaced when they die.

    Args:
        url:
            URL of the database.
        folder:
            Folder of the files with their results.
        n_trials:
            Number of trials of the study.
    """

    def __init__(self, url: str, folder: Path, n_trials: int) -> None:
        self.url, self.folder, self.n_trials = url, folder, n_trials
        self.workers: list[BaseProcess] = []
        self._started = 0

    def start(self) -> None:
        """Add a worker."""
        journal = self.folder / f"results-{self.n_trials}-{self._started}"
        process = _processes.Process(target=work, args=(self.url, journal, self.n_trials))
        process.start()
        self._started += 1
        self.workers.append(process)

    def kill(self, generator: random.Random) -> bool:
        """Kill one of those alive and start another; return whether one was alive."""
        alive = [worker for worker in self.workers if worker.is_alive()]
        if not alive:
            return False
        victim = generator.choice(alive)
        victim.kill()
        victim.join()
        self.workers.remove(victim)
        self.start()
        return True

    def join(self, end: float) -> list[int | None]:
        """Wait for all until ``end``, then kill them; return their exit codes."""
        for worker in self.workers:
            worker.join(max(end - time.monotonic(), 0))
            worker.kill()
            worker.join()
        return [worker.exitcode for worker in self.workers]


def campaign(
    url: str,
    folder: Path,
    *,
    n_trials: int = 80,
    kills: int = 20,
    workers: int = 4,
    seed: int = 0,
    disaster: Callable[[], None] | None = None,
) -> Outcome:
    """Run a study while its workers are killed, and check the result.

    Args:
        url:
            URL of an empty database.
        folder:
            Folder of the files with the workers' results; not on the disk that fills.
        n_trials:
            Number of trials of the study.
        kills:
            Number of workers that are killed, at random moments.
        workers:
            Number of processes at a time.
        seed:
            Seed of the moments.
        disaster:
            Function that is called once, when half of the trials are complete.
    """
    generator = random.Random(seed)
    started = time.monotonic()
    optuna.create_study(storage=open_storage(url, **BEATS), study_name=STUDY)
    crew = Crew(url, folder, n_trials)
    for _ in range(workers):
        crew.start()
    moments = sorted(generator.uniform(0, 0.95 * n_trials) for _ in range(kills))
    done = 0
    while time.monotonic() < started + LIMIT and (moments or disaster is not None):
        count = len(notes(folder))
        if disaster is not None and count >= n_trials / 2:
            disaster()
            disaster = None
        if moments and count >= moments[0]:
            time.sleep(generator.uniform(0, 0.2))
            if not crew.kill(generator):
                break
            moments.pop(0)
            done += 1
        time.sleep(0.05)
    codes = crew.join(started + LIMIT)
    seconds = time.monotonic() - started
    harm = look(url, folder, n_trials)

    again = Crew(url, folder, n_trials + MORE)
    again.start()
    codes += again.join(time.monotonic() + LIMIT)
    after = look(url, folder, n_trials + MORE)
    resumed = not any(codes) and not any(v for k, v in after.items() if k != "complete")
    return Outcome(kills=done, seconds=seconds, damage=integrity(url), resumed=resumed, **harm)


def look(url: str, folder: Path, n_trials: int) -> dict[str, int]:
    """Compare a study with its number of trials and with the files of its workers."""
    study = optuna.load_study(study_name=STUDY, storage=open_storage(url, **BEATS))
    return compare(study, folder, n_trials)


def table(rows: list[tuple[str, str, Outcome]]) -> str:
    """Return the campaigns as a Markdown table."""
    lines = [
        "| database | besides | kills | complete | missing | lost | duplicates | unfinished "
        "| damage | resumes | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, besides, o in rows:
        lines.append(
            f"| {name} | {besides} | {o.kills} | {o.complete} | {o.missing} | {o.lost} "
            f"| {o.duplicates} | {o.unfinished} | {o.damage or 'none'} "
            f"| {'yes' if o.resumed else 'NO'} | {o.seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run all campaigns and print the table; fail if anything was harmed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="16 trials and 4 kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one of the databases, restart or disk")
    arguments = parser.parse_args()
    size = {"n_trials": 16, "kills": 4} if arguments.quick else {"n_trials": 80, "kills": 20}
    options: dict[str, Any] = {**size, "seed": arguments.seed}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rows: list[tuple[str, str, Outcome]] = []

    def run(name: str, besides: str, url: str, disaster: Callable[[], None] | None = None) -> None:
        with TemporaryDirectory() as folder:
            outcome = campaign(url, Path(folder), disaster=disaster, **options)
        print(f"{name} {besides} {outcome}", file=sys.stderr, flush=True)
        rows.append((name, besides, outcome))

    for backend in BACKENDS:
        if arguments.only in (None, backend):
            with TemporaryDirectory() as folder, fresh_database(backend, Path(folder)) as url:
                run(backend, "", url)
    has_server, has_mount = postgresql_program("initdb") is not None, os.geteuid() == 0
    if arguments.only == "restart" or (arguments.only is None and has_server):
        with own_postgresql() as server:
            run("postgresql", "server crashes, 2 s down", server.url, server.crash)
    if arguments.only == "disk" or (arguments.only is None and has_mount):
        # The write-ahead log alone takes 4 MB.
        with full_disk(megabytes=16) as disk:
            run("sqlite", "disk full for 3 s", disk.url, disk.fill)
    print(table(rows))
    return 0 if all(outcome.unharmed for _, _, outcome in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
