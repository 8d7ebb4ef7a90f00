"""Several worker processes on one machine: started, watched, restarted, stopped."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from sgquant_optuna.search.workers.stopping import KILL_MARGIN, on_signals

_logger = logging.getLogger(__name__)

BAD_INPUT = 2
DELETED = 3  # the study, under its workers
_FIRST_PAUSE = 1.0  # seconds before the first restart; doubled for each further one
_QUIET = 3600.0  # seconds of a process after which the restarts before it are forgotten


class Process(Protocol):
    """What is asked of a process, as of ``subprocess.Popen``."""

    @property
    def pid(self) -> int:
        """Its number."""

    def poll(self) -> int | None:
        """Return its exit code, or ``None`` while it runs."""

    def send_signal(self, number: int) -> None:
        """Send it a signal."""


@dataclass
class Slot:
    """One of the processes, and what became of those in its place before it."""

    process: Process | None = None
    restarts: int = 0
    start_at: float = 0.0
    started: float = 0.0
    exit_code: int | None = None
    readers: list[threading.Thread] = field(default_factory=list)


class RestartedProcesses(ABC):
    """Processes of one kind: started, watched, restarted, stopped.

    Args:
        count:
            Number of processes.
        grace:
            Seconds that a process gets to end after a signal; one that is still there a little
            later, because it is paused, is killed.
        max_restarts:
            Number of times that a process that died is replaced; one that ran for an hour is
            replaced as if it were the first.
    """

    def __init__(self, count: int, *, grace: float = 5.0, max_restarts: int = 3) -> None:
        if count < 1:
            raise ValueError(f"worker processes: expected at least 1, got {count}")
        self._grace = grace
        self._max_restarts = max_restarts
        self._slots = [Slot() for _ in range(count)]
        self._stopping: int | None = None
        self._kill_at = math.inf
        for slot in self._slots:
            self._start(slot)

    @abstractmethod
    def _launch(self, slot: Slot) -> Process:
        """Start one process."""

    def watch(self) -> bool:
        """Restart what died; return whether any process runs still. Call it again and again."""
        if time.monotonic() >= self._kill_at:
            self._signal(signal.SIGKILL)
        for slot in self._slots:
            if slot.exit_code is not None:
                continue
            if slot.process is None:
                if self._stopping is not None:
                    slot.exit_code = 128 + self._stopping
                elif time.monotonic() >= slot.start_at:
                    self._start(slot)
            elif (code := slot.process.poll()) is not None:
                self._ended(slot, code)
        return any(slot.exit_code is None for slot in self._slots)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Pass a signal on to all processes; those that end are not restarted any more.

        They get it as SIGTERM. One that still starts has no handler yet, so that this ends it; the
        ``KeyboardInterrupt`` of SIGINT may be lost in an import, and then the process works on.
        """
        if self._stopping is None:
            self._kill_at = time.monotonic() + self._grace + KILL_MARGIN
        self._stopping = number
        self._signal(signal.SIGTERM)

    @property
    def exit_code(self) -> int:
        """0 if all ended well, 3 if the study is gone, 2 on bad input, 128 + signal, else 1."""
        codes = {slot.exit_code or 0 for slot in self._slots}
        if codes == {0}:
            return 0
        if (shared := shared_code(codes)) is not None:
            return shared
        return 1 if self._stopping is None else 128 + self._stopping

    def _signal(self, number: int) -> None:
        for slot in self._slots:
            if slot.process is not None and slot.process.poll() is None:
                slot.process.send_signal(number)

    @contextmanager
    def forwarding_signals(self) -> Iterator[None]:
        """Pass SIGINT and SIGTERM on to the processes inside the block."""
        with on_signals(self.stop):
            yield

    def _start(self, slot: Slot) -> None:
        slot.started = time.monotonic()
        slot.process = self._launch(slot)
        if self._stopping is not None:  # the signal came while it was launched
            slot.process.send_signal(signal.SIGTERM)

    def _ended(self, slot: Slot, code: int) -> None:
        for reader in slot.readers:
            reader.join(timeout=1.0)
        assert slot.process is not None
        process, slot.process = slot.process, None
        if code == 0 or self._stopping is not None:
            slot.exit_code = code if code >= 0 else 128 - code
            return
        # The others have the same input. Not so what a replacement stumbles over: the one before
        # it had taken the input, so something happened since, and may pass.
        if code == DELETED or (code == BAD_INPUT and not slot.restarts):
            slot.exit_code = code
            self.stop()
            return
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if time.monotonic() - slot.started >= _QUIET:
            slot.restarts = 0
        if slot.restarts == self._max_restarts:
            _logger.error("worker process %d ended by %s; giving it up", process.pid, how)
            slot.exit_code = 1
            return
        slot.start_at = time.monotonic() + _FIRST_PAUSE * 2**slot.restarts
        slot.restarts += 1
        _logger.warning(
            "worker process %d ended by %s; restart %d of %d",
            *(process.pid, how, slot.restarts, self._max_restarts),
        )


class WorkerProcesses(RestartedProcesses):
    """Runs ``sgquant worker`` several times with the cores of the machine divided among them.

    Args:
        arguments:
            Arguments of ``sgquant worker``.
        count:
            Number of processes.
        environment:
            Variables besides those of this process; a database URL goes here, because the
            command line of a process can be read by every user.
        show:
            Function that takes the lines of the processes; the standard error by default.
        options:
            Options of :class:`RestartedProcesses`.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        count: int,
        *,
        environment: Mapping[str, str],
        show: Callable[[str], None] | None = None,
        **options: Any,
    ) -> None:
        self.errors: list[str] = []
        self._shows_errors_alone = False
        self._command = [
            *(sys.executable, "-m", "sgquant_optuna", "worker", "--parent", str(os.getpid())),
            *arguments,
        ]
        self._environment = {
            **os.environ,
            **({"OMP_NUM_THREADS": str(threads_for(count))} if count > 1 else {}),
            **environment,
        }
        self._show = show or say
        super().__init__(count, **options)

    def _ended(self, slot: Slot, code: int) -> None:
        if code == DELETED:  # one line says so; how the others end is of no interest
            self._shows_errors_alone = True
        super()._ended(slot, code)

    def _launch(self, slot: Slot) -> Process:
        # A group of its own: Ctrl+C in the terminal reaches this process alone, which passes it
        # on once. Twice would mean "at once" to a worker.
        process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        slot.readers.append(threading.Thread(target=self._read, args=(process,), daemon=True))
        slot.readers[-1].start()
        return process

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                line = line.rstrip("\n")
                if line.startswith("error: "):
                    if line in self.errors:  # all processes make the same mistake: shown once
                        continue
                    self.errors.append(line)
                elif self._shows_errors_alone:
                    continue
                self._show(line)


def say(line: str) -> None:
    """Write a line of a process to the standard error."""
    print(line, file=sys.stderr, flush=True)


def shared_code(codes: Collection[int]) -> int | None:
    """Return the exit code of processes that is for all of them, if one ended with such."""
    return next((code for code in (DELETED, BAD_INPUT) if code in codes), None)


def threads_for(count: int) -> int:
    """Return the threads of each of several processes: their share of the cores.

    An ``OMP_NUM_THREADS`` that the user set stays.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // count)
