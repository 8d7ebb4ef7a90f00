"""Keeps connections to a server cheap: closed soon after their last use, TLS settings made once.

A trial writes in one go of some thirty transactions that take a tenth of a second, and then trains
for minutes. So a connection is kept from one transaction to the next, and closed during training:
hundreds of workers fit a server.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from sgquant_optuna.storage.waits import cut_if_silent

IDLE_SECONDS = 1.0
_PING_SECONDS = 10.0  # of a check without an answer, after which the connection is replaced
_UNCHECKED_SECONDS = 0.1  # a connection that was idle for longer is checked before its next use
_OFFERS_TLS = 0x800  # CLIENT_SSL of the protocol of MySQL


def close_when_idle(engine: sa.Engine, seconds: float = IDLE_SECONDS) -> None:
    """Close the connections of an engine once none was used for some seconds.

    A connection that broke while it was idle is replaced without an error. A forked process leaves
    the connections to its parent.

    Args:
        engine:
            Engine with a pool that keeps connections.
        seconds:
            Longest time that the connections stay open without use.
    """
    closer = _Closer(engine, seconds)
    sa.event.listen(engine, "checkin", closer.used)
    sa.event.listen(engine, "checkout", _replace_if_broken(engine.dialect))
    os.register_at_fork(after_in_child=closer.forked)
    engine.dispose()  # connections that are idle already would never be closed


def reuse_tls_settings(engine: sa.Engine) -> None:
    """Let PyMySQL make each connection with the TLS settings of the first one.

    By default PyMySQL uses TLS where a server offers it and checks no certificate, but reads all
    certificates of the system for each connection. That took 27 ms of processor time, the rest of
    a transaction 1 ms. Settings in the URL are left alone. Once a server has offered TLS, a
    connection without it is refused.

    Args:
        engine:
            Engine of any database; only those with PyMySQL are changed.
    """
    is_set_by_user = any(name.startswith("ssl") for name in engine.url.query)
    if engine.dialect.driver != "pymysql" or is_set_by_user:
        return
    settings: dict[str, Any] = {}

    def use(dialect: object, record: object, arguments: object, options: dict[str, Any]) -> None:
        options.update(settings)

    def keep(connection: Any, record: object) -> None:
        offered = connection.ssl and connection.server_capabilities & _OFFERS_TLS
        settings.update({"ssl": connection.ctx} if offered else {"ssl_disabled": True})

    sa.event.listen(engine, "do_connect", use)
    sa.event.listen(engine, "connect", keep)


def _replace_if_broken(dialect: sa.Dialect) -> Callable[[Any, Any, Any], None]:
    def check(connection: Any, record: Any, proxy: Any) -> None:
        idle = time.monotonic() - record.info.get("used", time.monotonic())
        if idle < _UNCHECKED_SECONDS:
            return
        try:
            # psycopg would wait without end for a server behind a network that has fallen silent.
            with cut_if_silent("database: check of a connection", connection, _PING_SECONDS):
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
        # A connection in use would go back to the old pool and never be closed; when it comes
        # back, the next watch begins.
        if engine is not None and not engine.pool.checkedout():  # type: ignore[attr-defined]
            engine.dispose()
