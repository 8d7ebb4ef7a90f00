"""Ends a worker on SIGTERM or SIGINT without losing its trial, and in time whatever hangs."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_logger = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds after the grace time: until a worker ends itself, its parent kills it, the parent ends.
WORKER_MARGIN, KILL_MARGIN, PARENT_MARGIN = 1.4, 1.65, 1.85
_PARENT_INTERVAL = 1.0  # seconds


@contextmanager
def on_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Let a function handle SIGINT and SIGTERM inside the block; it gets the signal's number.

    Only the main thread of a process receives signals; in another thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def call(number: int, frame: FrameType | None) -> None:
        handle(number)

    before = {number: signal.signal(number, call) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopped(BaseException):
    """A worker was asked to stop.

    It is no ``Exception``, so that nothing that handles errors takes it for one: Optuna would
    record the trial as failed.
    """


class Stopper:
    """Turns signals into an orderly end.

    The first signal lets a running trial finish within the grace time, and interrupts anything
    else at once. After the grace time, or at the second signal, the trial is interrupted by
    :class:`Stopped` and can be released. A further signal ends the process on the spot, as does
    whatever still waits for a database soon after the grace time: another worker finds the trial
    by its missing heartbeat.

    Only the main thread of a process receives signals; in another thread this does nothing.

    Args:
        grace:
            Seconds that a running trial gets to finish.
        margin:
            Seconds after the grace time until the process is ended.
    """

    def __init__(self, grace: float, *, margin: float = WORKER_MARGIN) -> None:
        self.grace = grace
        self._margin = margin
        self.received: int | None = None
        self._count = 0
        self._in_trial = False
        self._protected = False
        self._raised = False

    @contextmanager
    def installed(self) -> Iterator[Stopper]:
        """Handle signals inside the block, and restore what handled them before."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        alarm = signal.signal(signal.SIGALRM, self._on_alarm)
        try:
            with on_signals(self._on_signal), ended_after(self.grace + self._margin):
                yield self
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarm)

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """What a process ends with after this signal, as shells expect it."""
        return 0 if self.received is None else 128 + self.received

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Mark the block in which a first signal waits for the end of the trial.

        Raises:
            Stopped:
                If the grace time is over, or the signal came before the trial began.
        """
        if self.requested:
            self._interrupt()
        self._in_trial = True
        try:
            yield
        finally:
            self._in_trial = False

    @contextmanager
    def protected(self) -> Iterator[None]:
        """Mark the block that a first signal must not interrupt: it is noted only."""
        self._protected = True
        try:
            yield
        finally:
            self._protected = False

    def _on_signal(self, number: int) -> None:
        self._count += 1
        self.received = number
        name = signal.Signals(number).name
        if self._raised:
            os._exit(self.exit_code)
        if self._count == 1 and self._in_trial:
            _logger.warning("%s: the trial has %g s left, then goes back", name, self.grace)
            signal.setitimer(signal.ITIMER_REAL, max(self.grace, 1e-3))
        elif not (self._count == 1 and self._protected):
            _logger.warning("%s: stopping", name)
            self._interrupt()

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self._in_trial:
            self._interrupt()

    def _interrupt(self) -> None:
        self._raised = True
        raise Stopped


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """End the process if the block lasts longer than some seconds after a signal.

    Python handles a signal between two of its own steps. A call that waits in C, for a lock of
    SQLite or a server that is gone, is not interrupted, so a thread reads the signals that come.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    is_over = threading.Event()

    def watch() -> None:
        while received := reader.recv(1):
            if received[0] in _SIGNALS:
                if not is_over.wait(seconds):
                    name = signal.Signals(received[0]).name
                    _logger.error("%s: something still waits; ending this process now", name)
                    os._exit(128 + received[0])
                return

    thread = threading.Thread(target=watch, name="end of the grace time", daemon=True)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        is_over.set()
        writer.close()
        thread.join()
        reader.close()


def stop_with_parent(parent: int) -> None:
    """Send this process a SIGTERM when its parent is gone.

    Args:
        parent:
            Process id of the parent.
    """

    def watch() -> None:
        pause = threading.Event()
        while os.getppid() == parent:
            pause.wait(_PARENT_INTERVAL)
        _logger.warning("the parent process %d is gone", parent)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
