"""Closes the connections to a server that nobody has used for a moment."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

IDLE = 1.0
"""Seconds. What a trial writes comes in one go of some thirty transactions, which take a tenth of
that; then it trains for minutes."""
_FRESH = 0.1  # seconds after which a connection is asked whether it still is one


def close_when_idle(engine: sa.Engine, seconds: float = IDLE) -> None:
    """Close the connections of an engine once none was used for some seconds.

    One that broke meanwhile is replaced unseen. A forked process leaves them to its parent.

    Args:
        engine:
            Has a pool that keeps connections.
        seconds:
            How long one may be idle.
    """
    closer = _Closer(engine, seconds)
    sa.event.listen(engine, "checkin", closer.used)
    sa.event.listen(engine, "checkout", _replace_if_broken(engine.dialect))
    os.register_at_fork(after_in_child=closer.forked)
    engine.dispose()  # what is idle already is watched by nobody


def _replace_if_broken(dialect: sa.Dialect) -> Callable[[Any, Any, Any], None]:
    def check(connection: Any, record: Any, proxy: Any) -> None:
        idle = time.monotonic() - record.info.get("used", time.monotonic())
        if idle < _FRESH:
            return
        try:
            dialect.do_ping(connection)
        except dialect.loaded_dbapi.Error as error:
            raise sa.exc.DisconnectionError("broken while idle") from error

    return check


class _Closer:
    """A thread that lives as long as there may be idle connections."""

    def __init__(self, engine: sa.Engine, seconds: float) -> None:
        # The pool holds this object by its event, and the hook at a fork for ever.
        self._engine = weakref.ref(engine)
        self._seconds = seconds
        self._lock = threading.Lock()
        self._is_watched = False
        self._last_use = 0.0

    def used(self, connection: object, record: Any) -> None:
        """Note that a connection came back."""
        self._last_use = record.info["used"] = time.monotonic()
        with self._lock:
            if not self._is_watched:
                self._is_watched = True
                # It holds the engine, so that connections of one that is dropped are closed too.
                watch = threading.Thread(
                    target=self._watch, args=[self._engine()], name="idle connections", daemon=True
                )
                watch.start()

    def forked(self) -> None:
        """Forget the connections and the thread of the parent."""
        self._lock, self._is_watched = threading.Lock(), False
        if (engine := self._engine()) is not None:
            engine.dispose(close=False)

    def _watch(self, engine: sa.Engine | None) -> None:
        while (left := self._last_use + self._seconds - time.monotonic()) > 0:
            time.sleep(left)
        with self._lock:
            self._is_watched = False
        if engine is not None:
            engine.dispose()  # one that is in use just now is closed when it comes back
