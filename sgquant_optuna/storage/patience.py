"""Waits for a database that restarts or is full, instead of losing hours of training."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import sqlalchemy as sa

T = TypeVar("T")

_logger = logging.getLogger(__name__)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds
# Words of PostgreSQL's refusals that waiting does not mend; its drivers give no code here.
_REFUSED = ("authentication failed", "does not exist", "no pg_hba.conf entry", "permission denied")
# MariaDB: cannot connect, lost, too many connections, shutting down.
_MYSQL_AWAY = {1040, 1053, 1927, 2002, 2003, 2006, 2013}
# MariaDB: record changed, lock wait timeout, deadlock, disk full. The transaction is undone.
_MYSQL_UNDONE = {1020, 1021, 1205, 1213, 1114}
# PostgreSQL: serialization, deadlock, disk full.
_POSTGRESQL_UNDONE = {"40001", "40P01", "53100"}
_SQLITE_UNDONE = ("disk is full", "database is locked", "disk i/o error", "unable to open")


class Patience:
    """Pauses that get longer, until the time is over.

    Args:
        seconds:
            How long to wait in all.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._pause = _FIRST_PAUSE
        self._told = False

    def pause(self, error: BaseException) -> bool:
        """Sleep a while and return whether to try again."""
        left = self._end - time.monotonic()
        if left <= 0:
            return False
        if not self._told:
            text = str(getattr(error, "orig", None) or error).strip().splitlines() or [""]
            _logger.warning("database: %s; trying again for up to %.0f s", text[0], left)
            self._told = True
        time.sleep(min(self._pause * random.uniform(0.5, 1.0), left))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return True


def repeat_patiently(call: Callable[[], T], seconds: float) -> T:
    """Return what a call returns, repeating it while the database is away.

    A transaction that broke may have been written nevertheless, so the call has to be one that
    may happen twice.

    Raises:
        Exception:
            The last error when the time is over, or at once one that waiting does not mend.
    """
    patience = Patience(seconds)
    while True:
        try:
            return call()
        except Exception as error:
            cause = next(filter(_is_passing, _database_errors(error)), None)
            if cause is None or not patience.pause(cause):
                raise


def connect_patiently(engine: sa.Engine, seconds: float) -> None:
    """Make an engine wait for its server whenever it connects; nothing was sent, so it is safe."""

    def connect(dialect: Any, record: object, arguments: Any, options: Any) -> Any:
        patience = Patience(seconds)
        while True:
            try:
                return dialect.connect(*arguments, **options)
            except dialect.loaded_dbapi.OperationalError as error:
                if not _may_come_back(error) or not patience.pause(error):
                    raise

    sa.event.listen(engine, "do_connect", connect)


def _may_come_back(error: Any) -> bool:
    """Tell whether a server that cannot be connected to may be there later."""
    if error.args and isinstance(error.args[0], int):  # pymysql
        return error.args[0] in _MYSQL_AWAY
    return not any(word in str(error).lower() for word in _REFUSED)


def _database_errors(error: BaseException | None) -> Iterator[sa.exc.DBAPIError]:
    while error is not None:  # Optuna wraps them
        if isinstance(error, sa.exc.DBAPIError):
            yield error
        error = error.__cause__ or error.__context__


def _is_passing(error: sa.exc.DBAPIError) -> bool:
    """Tell whether a broken transaction may work later."""
    if error.connection_invalidated:
        return True
    cause = error.orig
    if getattr(cause, "sqlstate", None) in _POSTGRESQL_UNDONE:
        return True
    if type(cause).__module__.startswith("sqlite3"):
        return any(word in str(cause).lower() for word in _SQLITE_UNDONE)
    code = cause.args[0] if cause is not None and cause.args else None
    return isinstance(code, int) and code in _MYSQL_UNDONE
