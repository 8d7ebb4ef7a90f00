"""A campaign of faults on the workers of a study: which results are lost, who stands still?

    python benchmarks/campaign.py                      # all faults on all databases
    python benchmarks/campaign.py --quick              # each in seconds, with shorter limits
    python benchmarks/campaign.py --only pause stall --database mysql

Real ``sgquant worker`` processes run trials that pretend to train (``pretended_workers.py``),
while something strikes (``campaign_faults.py``). PostgreSQL and MariaDB are servers of our own,
where their programs are installed. The disk that is full is a tmpfs, which needs root. The figures
of killed workers alone are those of ``chaos.py``.

Goals: all trials that were asked for, none lost, none measured twice; no other worker stands still
for longer than 60 s; a worker ends within its grace time and 2 s of SIGTERM; memory grows by less
than 5 MiB for 1,000 trials.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE.parent), str(_HERE)]
# Workers are other processes.
os.environ["PYTHONPATH"] = os.pathsep.join([str(_HERE.parent), str(_HERE)])
os.environ.setdefault("OMP_NUM_THREADS", "1")

import campaign_faults as faults  # noqa: E402
from campaign_stage import GRACE, LONGEST_STANDSTILL, SLACK, Fault, Row, Stage  # noqa: E402
from campaign_stage import _processes as processes  # noqa: E402
from claims_simulation import simulate  # noqa: E402
from fault_proxy import Harm  # noqa: E402
from full_disks import write_to_a_full_disk  # noqa: E402
from own_servers import OWN, Server, own_kinds  # noqa: E402
from pretended_workers import Pretence  # noqa: E402

from tests.databases import SERVERS, Proxy, fresh_database  # noqa: E402

SERVED = ("postgresql", "mysql", "grpc")
EVERYWHERE = ("sqlite", *SERVED)
# Seconds after a fault until workers have to end; in a quick campaign, a silent gRPC connection
# is still noticed after 30 s.
_LIMITS = {False: 400.0, True: 60.0}


@dataclass(frozen=True)
class Place:
    """A database of a fault.

    Args:
        kind:
            Kind of the database.
        url:
            URL of the database, which is empty.
        server:
            What can be killed; ``None`` for SQLite.
    """

    kind: str
    url: str
    server: Any


class Campaign:
    """Runs faults and keeps what came of them.

    Args:
        quick:
            Whether each takes seconds, with shorter limits of time.
        seed:
            Seed of the moments.
        kinds:
            Databases to use.
        older:
            Commit of the older version; by default the one before the last change of the package.
        trials:
            Trials of each study, if others than those of the fault.
    """

    def __init__(
        self,
        *,
        quick: bool,
        seed: int,
        kinds: list[str],
        older: str | None,
        trials: int | None,
    ) -> None:
        self.quick, self.seed, self.kinds = quick, seed, kinds
        self.older, self.trials = older, trials
        self.times = faults.SCALED if quick else faults.REAL
        self.rows: list[Row] = []
        self._servers: dict[str, Server] = {}
        self._stack = ExitStack()

    def close(self) -> None:
        """End the servers."""
        self._stack.close()

    def pause(self) -> None:
        """Workers paused inside a transaction."""
        for statement in faults.STATEMENTS[: 1 if self.quick else None]:
            fault = functools.partial(faults.paused, times=self.times, statement=statement)
            name = f"paused after {statement}"
            self._on(("sqlite", "postgresql", "mysql"), name, fault, asked=(80, 600))

    def network(self) -> None:
        """Connections that are dropped, half closed, silent and slow."""
        singly = [[harm] for harm in Harm]
        for harms in [list(Harm)] if self.quick else singly:
            for kind in self._kinds_of(SERVED):
                self._run_network(kind, harms)

    def stall(self) -> None:
        """Connections that fall silent; a part of ``network``."""
        for kind in self._kinds_of(SERVED):
            self._run_network(kind, [Harm.STALL])

    def kill(self) -> None:
        """Servers killed and started again; for SQLite, all workers killed at once."""
        for kind in self._kinds_of(SERVED):
            with self._place(kind) as place:
                fault = functools.partial(
                    faults.killed_server, times=self.times, server=place.server
                )
                self._play(place, "killed server", fault, asked=(60, 300))
        self._on(("sqlite",), "all workers killed", faults.killed_workers, asked=(60, 300))

    def zones(self) -> None:
        """Workers and servers in other time zones."""
        for kind in self._kinds_of(("sqlite", "postgresql", "mysql")):
            with self._place(kind) as place:
                fault = functools.partial(faults.time_zones, server=place.server)
                self._play(place, "time zones", fault, asked=(30, 60), seconds=1.0)

    def disk(self) -> None:
        """Files written to a full disk."""
        if os.geteuid() == 0:
            self._keep(write_to_a_full_disk(processes))

    def many(self) -> None:
        """Short trials by eight workers."""
        fault = functools.partial(faults.many_trials, workers=8)
        size = {"asked": (400, 10_000), "seconds": 0.0, "layers": 10}
        seldom = {"n_measure": 200}  # each worker ranks, which takes longer than these trials
        self._on(self._databases, "short trials", fault, sampler=seldom, **size)

    def versions(self) -> None:
        """Workers of two versions on one study."""
        with tempfile.TemporaryDirectory() as folder:
            commit = faults.older_version(self.older, Path(folder))
            fault = functools.partial(faults.two_versions, older=Path(folder))
            name = f"beside {commit}"
            self._on(self._databases, name, fault, asked=(60, 300))

    def children(self) -> None:
        """Processes of ``--n-jobs`` killed."""
        fault = functools.partial(faults.killed_children, kills=2 if self.quick else 5)
        self._on(("sqlite",), "killed children", fault, asked=(80, 300), seconds=0.5)

    def claims(self) -> None:
        """Workers that claim at once, simulated."""
        found = simulate(100 if self.quick else 1000, seed=self.seed)
        notes = [
            f"{found.workers} workers, {1000 * found.seconds:.0f} ms and {found.written:.1f} "
            "claims a trial"
        ]
        row = Row("claims at once", "memory", found.asked, found.complete, notes=notes)
        row.duplicates = found.duplicates
        self._keep(row)

    @property
    def _databases(self) -> tuple[str, ...]:
        """Databases of a fault that hardly depends on them: a quick campaign takes one."""
        kinds = tuple(kind for kind in ("sqlite", "postgresql", "mysql") if kind in self.kinds)
        return kinds[:1] if self.quick else kinds

    def _run_network(self, kind: str, harms: list[Harm]) -> None:
        with self._place(kind) as place:
            fault = functools.partial(
                faults.harmed_network, times=self.times, kind=kind, harms=harms
            )
            name = harms[0] if len(harms) == 1 else "network"
            self._play(place, str(name), fault, asked=(80, 300))

    def _kinds_of(self, kinds: tuple[str, ...]) -> list[str]:
        return [kind for kind in kinds if kind in self.kinds]

    def _on(self, kinds: tuple[str, ...], name: str, fault: Fault, **size: Any) -> None:
        for kind in self._kinds_of(kinds):
            with self._place(kind) as place:
                self._play(place, name, fault, **size)

    def _play(
        self, place: Place, name: str, fault: Fault, *, asked: tuple[int, int], **pretence: Any
    ) -> None:
        folder = Path(tempfile.mkdtemp(prefix="sgquant-campaign-"))
        limits = {"IDLE_TRANSACTION": self.times.idle} if self.quick else {}
        stage = Stage(
            place.url,
            folder,
            Pretence(folder=str(folder), limits=limits, **pretence),
            seed=self.seed,
            asked=self.trials or asked[not self.quick],
        )
        row = stage.play(fault, name, place.kind, limit=_LIMITS[self.quick])
        self._keep(row)
        if row.is_good:
            shutil.rmtree(folder)
        else:
            print(f"its notes and logs: {folder}", file=sys.stderr, flush=True)

    def _keep(self, row: Row) -> None:
        self.rows.append(row)
        print(f"{time.strftime('%X')} {row}", file=sys.stderr, flush=True)

    @contextmanager
    def _place(self, kind: str) -> Iterator[Place]:
        """Make an empty database, on a server of our own."""
        with tempfile.TemporaryDirectory() as folder:
            if kind == "grpc":
                proxy = Proxy(Path(folder) / "study.db")
                proxy.start()
                try:
                    yield Place(kind, proxy.url, proxy)
                finally:
                    proxy.kill()
                return
            server = self._server(kind) if kind in OWN else None
            with fresh_database(kind, Path(folder)) as url:
                yield Place(kind, url, server)

    def _server(self, kind: str) -> Server:
        if kind not in self._servers:
            server: Any = self._stack.enter_context(OWN[kind]())
            self._servers[kind] = server
            url = server.url.replace("postgresql://", "postgresql+psycopg://")
            os.environ[SERVERS[kind]] = url
        return self._servers[kind]


FAULTS: dict[str, Callable[[Campaign], None]] = {
    "pause": Campaign.pause,
    "network": Campaign.network,
    "kill": Campaign.kill,
    "zones": Campaign.zones,
    "disk": Campaign.disk,
    "many": Campaign.many,
    "versions": Campaign.versions,
    "children": Campaign.children,
    "claims": Campaign.claims,
}
PARTS = {"stall": Campaign.stall}  # run by name only


def table(rows: list[Row]) -> str:
    """Return what came of the faults as a Markdown table."""
    lines = [
        "| fault | database | asked | complete | lost | duplicates | standstill (s) "
        "| SIGTERM to exit (s) | goals | besides |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        still = "" if row.standstill is None else f"{row.standstill:.1f}"
        exits = ", ".join(f"{seconds:.1f}" for seconds in row.exits)
        goals = "met" if row.is_good else "MISSED"
        besides = "; ".join([*row.remarks, *row.notes])
        lines.append(
            f"| {row.fault} | {row.database} | {row.asked} | {row.complete} | {row.lost} "
            f"| {row.duplicates} | {still} | {exits} | {goals} | {besides} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the faults and print the table; fail if a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="seconds for each fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=[*FAULTS, *PARTS], metavar="FAULT")
    parser.add_argument("--database", nargs="+", choices=EVERYWHERE, metavar="KIND")
    parser.add_argument("--older", metavar="COMMIT", help="version that runs beside this one")
    parser.add_argument("--trials", type=int, help="trials of each study, if others than usual")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    possible = ["sqlite", *own_kinds(), "grpc"]
    kinds = [kind for kind in possible if kind in (arguments.database or possible)]
    options = {name: getattr(arguments, name) for name in ("quick", "seed", "older", "trials")}
    with closing(Campaign(kinds=kinds, **options)) as campaign:
        for name in arguments.only or FAULTS:
            {**FAULTS, **PARTS}[name](campaign)
    print(table(campaign.rows))
    print(
        f"\ngoals: all complete, nothing lost or doubled, standstill at most "
        f"{LONGEST_STANDSTILL:.0f} s, exit within {GRACE:g} + {SLACK:g} s"
    )
    return 0 if all(row.is_good for row in campaign.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
