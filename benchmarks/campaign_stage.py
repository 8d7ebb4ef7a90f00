"""The stage of a campaign: real workers on one study, what strikes them, and what came of it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from pretended_trials import BEATS, Note, compare, notes
from pretended_workers import PROGRAM, Pretence, pause_wish, work

from sgquant_optuna.storage import open_storage
from sgquant_optuna.storage.attributes import SURPLUS_ATTR
from sgquant_optuna.study.plan import SearchPlan

STUDY = "campaign"
GRACE = 2.0  # seconds of a worker
SLACK = 2.0  # seconds that a worker may take to end besides its grace
LONGEST_STANDSTILL = 60.0  # seconds
_WARM = 2  # results of each worker before the strike
_STARTING = 120.0  # seconds until each worker has these
_EXIT = 60.0  # seconds that an end is waited for

# A process of its own makes the workers: they have all modules at once, and none of our sockets.
_processes = get_context("forkserver")
_processes.set_forkserver_preload(["pretended_workers"])


class Role(Enum):
    """What a worker is there for."""

    OTHER = "other"
    VICTIM = "victim"
    LEAVER = "SIGTERM"


@dataclass
class Worker:
    """A worker process.

    Args:
        pid:
            Process id.
        process:
            What started it; ``None`` if another process did.
        role:
            What it is there for.
        label:
            Name in remarks.
        started:
            Monotonic time of its start.
        exit_seconds:
            Time from SIGTERM to its end, if it got one.
        has_notes:
            Whether it runs trials itself.
    """

    pid: int
    process: BaseProcess | subprocess.Popen[bytes] | None
    role: Role
    label: str
    started: float = field(default_factory=time.monotonic)
    exit_seconds: float | None = None
    has_notes: bool = True

    @property
    def state(self) -> str:
        """Letter of the process in /proc, ``T`` if it is stopped; empty after its end."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return ""
        letter = stat.rpartition(")")[2].split()[0]
        return "" if letter in "ZX" else letter

    def code(self) -> int | None:
        """Wait for its end and return its exit code."""
        if self.process is None:
            return 0
        if isinstance(self.process, subprocess.Popen):
            return self.process.wait()
        self.process.join()
        return self.process.exitcode


@dataclass
class Row:
    """What came of a fault; the figures are counts of trials unless they name seconds.

    Args:
        fault:
            Name of the fault.
        database:
            Kind of the database.
        asked:
            Trials that were asked for.
        complete:
            Trials that are complete.
        lost:
            Results that a worker noted and the study does not have.
        duplicates:
            Complete trials that measured what another had measured.
        standstill:
            Longest time in seconds in which a worker that no fault hit had no result.
        exits:
            Seconds from SIGTERM to the end of each worker that got one.
        remarks:
            What else went wrong.
        notes:
            Other figures.
    """

    fault: str
    database: str
    asked: int
    complete: int
    lost: int = 0
    duplicates: int = 0
    standstill: float | None = None
    exits: Sequence[float] = ()
    remarks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether all goals are met."""
        slow = self.standstill is not None and self.standstill > LONGEST_STANDSTILL
        late = any(seconds > GRACE + SLACK for seconds in self.exits)
        wrong = self.lost or self.duplicates or self.complete != self.asked or self.remarks
        return not (slow or late or wrong)


Fault = Callable[["Stage"], Iterator[None]]
"""A generator: what comes before its ``yield`` prepares, what follows strikes and heals."""


class Stage(ExitStack):
    """Workers on one study.

    Args:
        url:
            URL of an empty database.
        folder:
            Folder for notes and logs.
        pretence:
            How the workers pretend.
        seed:
            Seed of the moments.
        asked:
            Number of trials.
    """

    def __init__(
        self, url: str, folder: Path, pretence: Pretence, *, seed: int, asked: int
    ) -> None:
        super().__init__()
        self.url, self.folder, self.pretence, self.asked = url, folder, pretence, asked
        self.random = random.Random(seed)
        self.workers: list[Worker] = []
        self.remarks: list[str] = []
        self.notes: list[str] = []
        self.may_fail = True
        self._struck = 0.0
        study = optuna.create_study(storage=open_storage(url, **BEATS), study_name=STUDY)
        SearchPlan(n_trials=asked, patience=0).save(study)

    def start(
        self,
        role: Role = Role.OTHER,
        *,
        url: str | None = None,
        label: str | None = None,
        **environment: str,
    ) -> Worker:
        """Add a worker, with variables of its own."""
        variables = {**self.pretence.environment, **environment}
        target = (variables, self.arguments(url))
        process = _processes.Process(target=work, args=target)
        process.start()
        assert process.pid is not None
        self.workers.append(Worker(process.pid, process, role, label or role.value))
        return self.workers[-1]

    def execute(self, role: Role, *options: str, **environment: str) -> Worker:
        """Add a worker that is a program of its own."""
        program = [sys.executable, "-c", PROGRAM, *self.arguments(None), *options]
        variables = {**os.environ, **self.pretence.environment, **environment}
        with (self.folder / "log-program").open("ab") as log:
            # In a folder without a package, which would come before those of PYTHONPATH.
            process = subprocess.Popen(
                program, env=variables, stdout=log, stderr=log, cwd=self.folder
            )
        has_notes = "--n-jobs" not in options
        worker = Worker(process.pid, process, role, "a program", has_notes=has_notes)
        self.workers.append(worker)
        return self.workers[-1]

    def adopt(self, pid: int) -> Worker:
        """Add a worker that another process started and that works on."""
        self.workers.append(Worker(pid, None, Role.OTHER, "a child"))
        return self.workers[-1]

    def pids_at_work(self) -> set[int]:
        """Return the process ids of all that have noted a result."""
        return {_pid_of(note) for note in notes(self.folder)}

    def arguments(self, url: str | None) -> list[str]:
        """Return the arguments of a worker."""
        storage = ["--storage", url or self.url, "--wait", "60"]
        return ["worker", STUDY, *storage, "--grace", str(GRACE), "--log-level", "warning"]

    def pause(self, worker: Worker, statement: str) -> None:
        """Let a worker stop itself in the transaction of its next such statement."""
        # Written aside first: the worker reads it as soon as it is there.
        aside = self.folder / "wish"
        aside.write_text(statement)
        aside.rename(pause_wish(self.folder, worker.pid))
        self.wait(lambda: worker.state in ("T", ""), 30.0)
        if worker.state != "T":
            self.remarks.append(f"no {statement} to pause in")

    def terminate(self, worker: Worker) -> None:
        """Send SIGTERM, and take the time until the worker has ended."""
        sent = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGTERM)

        def watch() -> None:
            while worker.state and time.monotonic() < sent + _EXIT:
                time.sleep(0.02)
            worker.exit_seconds = time.monotonic() - sent

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        self.callback(watcher.join)

    def wait(self, until: Callable[[], bool], seconds: float) -> bool:
        """Wait until something is so; return whether it is, after some seconds at most."""
        end = time.monotonic() + seconds
        while not until():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def play(self, fault: Fault, name: str, database: str, *, limit: float) -> Row:
        """Run the study while a fault strikes.

        Args:
            fault:
                Fault, which starts the workers.
            name:
                Name of the fault.
            database:
                Kind of the database.
            limit:
                Seconds after the fault at which workers that have not ended count as stuck.
        """
        with self:
            course = fault(self)
            next(course)
            if not self.wait(self._all_are_warm, _STARTING):
                self.remarks.append("workers did not start")
            self._struck = time.monotonic()
            next(course, None)
            self.wait(lambda: not any(worker.state for worker in self.workers), limit)
            self._end_those_left()
        return self._row(name, database)

    def _all_are_warm(self) -> bool:
        counts = dict.fromkeys((worker.pid for worker in self.workers), 0)
        for note in notes(self.folder):
            pid = _pid_of(note)
            counts[pid] = counts.get(pid, 0) + 1
        return all(
            counts[worker.pid] >= _WARM or not (worker.has_notes and worker.state)
            for worker in self.workers
        )

    def _end_those_left(self) -> None:
        left = [worker for worker in self.workers if worker.state]
        for worker in left:
            os.kill(worker.pid, signal.SIGUSR1)  # its log shows where it hangs
        if left:
            time.sleep(0.5)
            labels = ", ".join(sorted(worker.label for worker in left))
            self.remarks.append(f"{len(left)} stuck ({labels})")
        for worker in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)

    def _row(self, name: str, database: str) -> Row:
        storage: Any = open_storage(self.url, **BEATS)
        study = optuna.load_study(study_name=STUDY, storage=storage)
        found = compare(study, self.folder, self.asked)
        ended = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        failed = sum(SURPLUS_ATTR not in trial.user_attrs for trial in ended)
        storage.remove_session()
        if failed:
            (self.notes if self.may_fail else self.remarks).append(f"{failed} failed")
        if found["unfinished"]:
            self.remarks.append(f"{found['unfinished']} unfinished")
        codes = {worker.pid: worker.code() for worker in self.workers}
        for worker in self.workers:
            code, expected = codes[worker.pid], (0,) if worker.role == Role.OTHER else (0, 143)
            if code not in (*expected, -signal.SIGKILL):
                self.remarks.append(f"exit code {code} ({worker.label})")
        exits = [w.exit_seconds for w in self.workers if w.exit_seconds is not None]
        counts = {key: found[key] for key in ("complete", "lost", "duplicates")}
        return Row(
            fault=name,
            database=database,
            asked=self.asked,
            **counts,
            standstill=self._standstill(found["missing"] == 0),
            exits=exits,
            remarks=self.remarks,
            notes=self.notes,
        )

    def _standstill(self, is_complete: bool) -> float | None:
        results = notes(self.folder)
        last = max((note.time for note in results), default=self._struck)
        end = last if is_complete else time.monotonic()
        longest = None
        for worker in self.workers:
            if worker.role != Role.OTHER:
                continue
            own = [note.time for note in results if _pid_of(note) == worker.pid]
            begin = max(self._struck, worker.started)
            times = sorted([begin, *(t for t in own if t > begin), max(end, begin)])
            gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
            longest = max(longest or 0.0, *gaps)
        return longest


def _pid_of(note: Note) -> int:
    return int(note.file.rpartition("-")[2])
