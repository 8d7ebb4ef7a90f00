"""What strikes the workers of a campaign."""

from __future__ import annotations

import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from campaign_stage import Role, Stage
from fault_proxy import Harm, fault_proxy
from pretended_trials import notes

from sgquant_optuna.storage import limits

ROOT = Path(__file__).parents[1]
# After them a worker holds the lock of the study, of its trial, or none that others wait for.
STATEMENTS = ("INSERT INTO trials", "UPDATE trials", "INSERT INTO trial_params")
_ZONES = ("UTC", "Asia/Tokyo", "America/New_York", "Pacific/Kiritimati")
_SILENCE = 5  # seconds that a driver waits for a server, in a scaled campaign
_MIB = 2**20


@dataclass(frozen=True)
class Times:
    """Seconds of the faults.

    Args:
        idle:
            Limit of a transaction whose client is paused.
        pause:
            Pause of a worker.
        down:
            Time until a killed server is started again.
        query:
            Options of the driver in the URL of workers whose connections are harmed.
    """

    idle: float
    pause: float
    down: float
    query: dict[str, dict[str, str]]


REAL = Times(limits.IDLE_TRANSACTION, limits.IDLE_TRANSACTION + 10.0, 5.0, {})
SCALED = Times(1, 4.0, 2.0, {"mysql": {"read_timeout": str(_SILENCE)}})


def paused(stage: Stage, times: Times, statement: str) -> Iterator[None]:
    """Pause a worker in the transaction of a statement; another one has to end meanwhile."""
    victim, leaver = stage.start(Role.VICTIM), stage.start(Role.LEAVER)
    for _ in range(3):
        stage.start()
    yield
    stage.pause(victim, statement)
    time.sleep(1)
    stage.terminate(leaver)
    time.sleep(times.pause - 1)
    os.kill(victim.pid, signal.SIGCONT)


def harmed_network(stage: Stage, times: Times, kind: str, harms: Sequence[Harm]) -> Iterator[None]:
    """Harm the connections of one worker for each kind of harm, and of one that has to end."""
    through = []
    for harm in harms:
        proxy = stage.enter_context(fault_proxy(stage.url))
        query = times.query.get(kind, {})
        stage.start(Role.VICTIM, url=proxy.url(**query), label=str(harm))
        through.append((harm, proxy))
    last = stage.enter_context(fault_proxy(stage.url))
    leaver = stage.start(Role.LEAVER, url=last.url())
    for _ in range(2):
        stage.start()
    yield
    for harm, proxy in through:
        if not proxy.harm(harm, also_new=harm == Harm.DELAY):
            stage.notes.append(f"no connection to {harm}")
    last.harm(Harm.STALL, also_new=True)
    time.sleep(1)
    stage.terminate(leaver)


def killed_server(stage: Stage, times: Times, server: Any) -> Iterator[None]:
    """Kill a server or a proxy and start it again; a worker has to end while it is away."""
    leaver = stage.start(Role.LEAVER)
    for _ in range(3):
        stage.start()
    yield
    server.kill()
    time.sleep(times.down / 2)
    stage.terminate(leaver)
    time.sleep(times.down / 2)
    server.start()


def killed_workers(stage: Stage) -> Iterator[None]:
    """Kill all workers at once, and start others."""
    victims = [stage.start(Role.VICTIM) for _ in range(4)]
    yield
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
    for _ in range(3):
        stage.start()


def time_zones(stage: Stage, server: Any) -> Iterator[None]:
    """Run workers in several time zones, and move that of the server twice."""
    stage.may_fail = False  # as a trial does that is declared stale
    for zone in _ZONES:
        stage.start(TZ=zone, PGTZ=zone)
    if server is not None:
        server.set_zone(9)
    yield
    for hours in (-5, 11):
        if server is not None:
            server.set_zone(hours)
        stage.start(TZ=stage.random.choice(_ZONES))
        time.sleep(3)


def many_trials(stage: Stage, workers: int) -> Iterator[None]:
    """Run very short trials, and watch the memory of the workers."""
    for _ in range(workers):
        stage.start()
    yield
    began = time.monotonic()
    before = len(notes(stage.folder))
    stage.wait(lambda: not any(worker.state for worker in stage.workers), 3600.0)
    results = notes(stage.folder)
    last = max(note.time for note in results)
    rate = (len(results) - before) / (last - began)
    growth = memory_growth(stage)
    stage.notes.append(f"{rate:.0f} trials/s, {growth:+.1f} MiB per 1,000 trials")
    if growth > 5:
        stage.remarks.append("memory grows")


def memory_growth(stage: Stage) -> float:
    """Return the largest growth of a worker in MiB for 1,000 trials of the study."""
    by_file: dict[str, list[tuple[int, int]]] = {}
    results = sorted(notes(stage.folder), key=lambda note: note.time)
    for count, note in enumerate(results):
        by_file.setdefault(note.file, []).append((count, note.memory))
    warm, growths = len(results) // 5, []
    for points in by_file.values():
        settled = [point for point in points if point[0] >= warm]
        if len(settled) > 1:
            (first, low), (last, high) = settled[0], settled[-1]
            growths.append((high - low) / _MIB / (last - first) * 1000)
    return max(growths)


def two_versions(stage: Stage, older: Path) -> Iterator[None]:
    """Let workers of an older version share the study."""
    path = os.pathsep.join([str(older), os.environ["PYTHONPATH"]])
    old = [stage.execute(role, PYTHONPATH=path) for role in (Role.LEAVER, Role.OTHER)]
    for _ in range(2):
        stage.start()
    yield
    for worker in old:
        if not (stage.folder / f"log-{worker.pid}").read_text().startswith(str(older)):
            stage.remarks.append("expected the older version, got this one")
    stage.terminate(old[0])


def older_version(commit: str | None, folder: Path) -> str:
    """Put the package of an older commit into a folder, and return the commit.

    Args:
        commit:
            Commit; by default the one before the last that changed the package.
        folder:
            Folder.
    """
    git = ["git", "-C", str(ROOT)]
    if commit is None:
        last = [*git, "log", "-1", "--format=%H~1", "--", "sgquant_optuna"]
        commit = subprocess.run(last, check=True, capture_output=True, text=True).stdout.strip()
    archive = [*git, "archive", commit, "sgquant_optuna"]
    packed = subprocess.run(archive, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as files:
        files.extractall(folder, filter="data")
    name = subprocess.run(
        [*git, "rev-parse", "--short", commit], check=True, capture_output=True, text=True
    )
    return name.stdout.strip()


def killed_children(stage: Stage, kills: int) -> Iterator[None]:
    """Kill processes of ``--n-jobs`` while their trials run; another such command has to end."""
    program = stage.execute(Role.VICTIM, "--n-jobs", "3")
    leaver = stage.execute(Role.LEAVER, "--n-jobs", "2")
    stage.wait(lambda: len(stage.pids_at_work()) == 5, 120.0)
    kept = stage.adopt(_children(program.pid)[0])
    yield
    stage.terminate(leaver)
    stage.wait(lambda: not leaver.state, 10.0)  # before others that start take all cores
    killed = 0
    while killed < kills:
        others = set(_children(program.pid)) - {kept.pid}
        busy = sorted(others & stage.pids_at_work())
        if busy:
            os.kill(stage.random.choice(busy), signal.SIGKILL)
            killed += 1
            time.sleep(stage.random.uniform(0.5, 1.5))
        elif not kept.state:
            break
        time.sleep(0.1)
    stage.notes.append(f"{killed} kills")


def _children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
