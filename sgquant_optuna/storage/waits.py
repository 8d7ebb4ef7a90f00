"""Tells the user what a process waits for, once a database has not answered for some seconds.

A worker that waits for a lock, or for a server behind a broken network, looks like one that
trains. So each call is noted while it runs, and one that lasts is logged, once.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

LONG = 5.0  # seconds
_LOOK = 1.0  # seconds between two looks at the calls that run
_IDLE = 10.0  # seconds without a call until the thread that looks ends
_WORDS = 70  # characters of a statement that are shown

Reason = Callable[[], str | None]

_logger = logging.getLogger(__name__)


def _unknown() -> None:
    return None


class _Watch:
    """The call of each thread that waits, and a thread that lives while there are some."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[int, tuple[str, float, Reason]] = {}  # by thread
        self._cuts: dict[int, tuple[float, Callable[[], None]]] = {}  # thread -> when and how
        self._told: dict[int, float] = {}  # thread -> beginning of its call that was logged
        self._last_use = 0.0
        self._is_looking = False

    def begin(
        self,
        what: str,
        reason: Reason = _unknown,
        *,
        deadline: float = math.inf,
        cut: Callable[[], None] = _unknown,
    ) -> None:
        """Note the call that this thread begins; it has no other that runs."""
        self._last_use = now = time.monotonic()
        thread = threading.get_ident()
        self._calls[thread] = what, now, reason
        if deadline < math.inf:
            self._cuts[thread] = now + deadline, cut
        if not self._is_looking:
            with self._lock:
                if not self._is_looking:
                    self._is_looking = True
                    threading.Thread(target=self._look, name="waits", daemon=True).start()

    def end(self) -> None:
        """Forget the call of this thread; tell that it is over if it was told that it lasts."""
        thread = threading.get_ident()
        self._cuts.pop(thread, None)
        what, began, _ = self._calls.pop(thread, ("", 0.0, _unknown))
        if self._told.pop(thread, None) == began:
            _logger.warning("%s: over after %.0f s", _shortened(what), time.monotonic() - began)

    def _look(self) -> None:
        pause = threading.Event()
        while self._calls or time.monotonic() - self._last_use < _IDLE:
            pause.wait(_LOOK)
            now = time.monotonic()
            for thread, (what, began, reason) in list(self._calls.items()):
                if now - began >= LONG and self._told.get(thread) != began:
                    self._told[thread] = began
                    text, found = _shortened(what), reason()
                    why = f" ({found})" if found else ""
                    _logger.warning("%s: no answer for %.0f s%s", text, now - began, why)
            for thread, (end, cut) in list(self._cuts.items()):
                if now >= end and self._cuts.pop(thread, None) is not None:
                    cut()
        self._is_looking = False


_watch = _Watch()


def _forget() -> None:
    """Begin anew in a forked process, which has none of the calls and no thread."""
    global _watch
    _watch = _Watch()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def told_if_long(what: str) -> Iterator[None]:
    """Log a line if the block lasts for some seconds.

    Args:
        what:
            Name of what the block waits for, such as ``"database: connecting"``.
    """
    watch = _watch
    watch.begin(what)
    try:
        yield
    finally:
        watch.end()


@contextmanager
def cut_if_silent(what: str, connection: Any, seconds: float) -> Iterator[None]:
    """Cut a connection if the block lasts too long, so that it ends in an error of the driver.

    Args:
        what:
            Name of what the block waits for.
        connection:
            Connection of a driver that tells its socket (``fileno``), as psycopg's.
        seconds:
            Longest time of the block.
    """
    watch = _watch
    watch.begin(what, deadline=seconds, cut=functools.partial(_cut, connection))
    try:
        yield
    finally:
        watch.end()


def tell_long_statements(
    engine: sa.Engine, reason: Reason = _unknown, *, deadline: float = math.inf
) -> None:
    """Log a line for each statement of an engine that lasts for some seconds.

    Args:
        engine:
            Engine of any database.
        reason:
            Function that returns what a statement waits for, if that is known.
        deadline:
            Seconds after which a connection is cut, for psycopg, which waits without end where
            something between keeps the connection alive.
    """

    def begin(connection: object, cursor: Any, statement: str, *_: object) -> None:
        cut = functools.partial(_cut, getattr(cursor, "connection", None))
        _watch.begin(f"database: {statement}", reason, deadline=deadline, cut=cut)

    def begin_commit(connection: sa.Connection) -> None:
        cut = functools.partial(_cut, connection.connection.dbapi_connection)
        _watch.begin("database: end of a transaction", reason, deadline=deadline, cut=cut)

    def end(*_: object) -> None:
        _watch.end()

    if deadline < math.inf:
        for event in ("commit", "rollback"):
            sa.event.listen(engine, event, begin_commit)
        sa.event.listen(engine, "checkin", end)

    sa.event.listen(engine, "before_cursor_execute", begin)
    sa.event.listen(engine, "after_cursor_execute", end)
    sa.event.listen(engine, "handle_error", end)


def _cut(connection: Any) -> None:
    """End a connection from another thread; who waits for it gets an error."""
    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as shared:
            shared.shutdown(socket.SHUT_RDWR)
    except Exception as error:  # closed meanwhile, or of a driver without a socket
        _logger.debug("cannot cut a connection: %s", error)


def _shortened(what: str) -> str:
    text = " ".join(what.split())
    return text if len(text) <= _WORDS else f"{text[:_WORDS]}..."
