"""Repeats calls to a database that restarts or is full, so that no hours of training are lost.

A call whose answer is lost may have been executed nevertheless. So only calls that may happen
twice are repeated as they are (``REPEATABLE``); the others check first whether they have happened.
"""

from __future__ import annotations

import functools
import logging
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState

from sgquant_optuna.storage.full_servers import MYSQL_FULL, said_of_full_server
from sgquant_optuna.storage.read_only import READING
from sgquant_optuna.storage.waits import told_if_long

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

T = TypeVar("T")

_logger = logging.getLogger(__name__)
RETRY_SECONDS = 300.0
REPEATABLE = (
    *READING,
    "set_study_user_attr",
    "set_study_system_attr",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "set_trial_intermediate_value",
)
"""Methods that may happen twice in any storage: they read, or write the same under a key."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds
# Words of errors of PostgreSQL after which a retry cannot help; its drivers give no code here.
_REFUSED = (
    "authentication failed",
    "no password supplied",
    "does not exist",
    "no pg_hba.conf entry",
    "permission denied",
    "does not support ssl",
    "certificate",
    "invalid ",  # a port, a setting
)
# MariaDB: cannot connect, lost, shutting down, ended while idle.
_MYSQL_AWAY = {1053, 1927, 2002, 2003, 2006, 2013, 4031, *MYSQL_FULL}
# MariaDB: record changed, lock wait timeout, deadlock, disk full, statement killed or too long.
# The transaction is undone.
_MYSQL_UNDONE = {1020, 1021, 1205, 1213, 1114, 1317, 1969, 3024}
# PostgreSQL: serialization, deadlock, disk full, wait for a lock too long, statement too long,
# transaction idle, session idle.
_POSTGRESQL_UNDONE = {"40001", "40P01", "53100", "55P03", "57014", "25P03", "57P05"}
_SQLITE_UNDONE = ("disk is full", "database is locked", "disk i/o error", "unable to open")
_PROXY_AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN")  # status codes of gRPC
_PROXY_ALIVE = "Exception calling application"  # details of an error inside the proxy itself


class Backoff:
    """Pauses that get longer, until a deadline.

    Args:
        seconds:
            Time from now to the deadline.
    """

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._pause = _FIRST_PAUSE
        self._is_logged = False

    def pause(self, error: BaseException) -> bool:
        """Sleep a while after an error; return ``False`` at once if the deadline is over."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            return False
        if not self._is_logged:
            _logger.warning("database: %s; trying again for up to %.0f s", message(error), left)
            self._is_logged = True
        time.sleep(min(self._pause * random.uniform(0.5, 1.0), left))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return True


def retry(call: Callable[[], T], seconds: float) -> T:
    """Return what a call returns; repeat it while the database is away.

    Args:
        call:
            Function that may happen twice.
        seconds:
            Longest time from now to the last repetition.

    Raises:
        Exception:
            The last error at the deadline, or an error that a retry cannot help, at once.
    """
    backoff = Backoff(seconds)
    while True:
        try:
            return call()
        except Exception as error:
            cause = _temporary_cause(error)
            if cause is None or not backoff.pause(cause):
                raise


def retry_methods(storage: type, names: Iterable[str]) -> None:
    """Make methods of a class repeat themselves for the ``retry_seconds`` of their object.

    Args:
        storage:
            Class of a storage.
        names:
            Names of methods that may happen twice.
    """

    def repeating(method: Any) -> Any:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return retry(lambda: method(self, *args, **kwargs), self.retry_seconds)

        return call

    for name in names:
        setattr(storage, name, repeating(getattr(storage, name)))


def retry_connecting(engine: sa.Engine, seconds: float) -> None:
    """Make an engine repeat its attempts to connect; nothing was sent yet, so it is safe.

    Args:
        engine:
            Engine of a server.
        seconds:
            Longest time to try, for each new connection.
    """

    def connect(dialect: Any, record: object, arguments: Any, options: Any) -> Any:
        backoff = Backoff(seconds)
        while True:
            try:
                with told_if_long("database: connecting"):
                    return dialect.connect(*arguments, **options)
            except dialect.loaded_dbapi.OperationalError as error:
                if not _may_come_back(error) or not backoff.pause(error):
                    raise

    sa.event.listen(engine, "do_connect", connect)


def write_state_once(
    storage: BaseStorage,
    write: Callable[[], bool],
    trial_id: int,
    state: TrialState,
    values: Sequence[float] | None,
    *,
    seconds: float,
) -> bool:
    """Write the state of a trial, if necessary in several tries; return what Optuna returns.

    Args:
        storage:
            Storage that is searched for the result after a try whose answer was lost.
        write:
            Function that writes the state.
        trial_id:
            Key of the trial.
        state:
            New state, not ``WAITING``: another worker may have taken a released trial by now.
        values:
            Values of a complete trial.
        seconds:
            Longest time to repeat.
    """
    tries = 0

    def try_to_write() -> bool:
        nonlocal tries
        tries += 1
        try:
            return write()
        except UpdateFinishedTrialError:
            # Only the process that runs a trial completes it: the try before was executed.
            if tries > 1 and values is not None:
                stored = storage.get_trial(trial_id)
                if stored.state == state and stored.values == [float(v) for v in values]:
                    return True
            raise

    return retry(try_to_write, seconds)


def message(error: BaseException) -> str:
    """Return what a database or its proxy says, in one line."""
    if (full := said_of_full_server(getattr(error, "orig", None) or error)) is not None:
        return full
    if _proxy_status(error) is not None:
        text = str(error.details())  # type: ignore[attr-defined]
    else:
        text = str(getattr(error, "orig", None) or error)
    lines = text.strip().splitlines()
    return lines[0] if lines else type(error).__name__


def outage(error: BaseException) -> str | None:
    """Return the message of the database or its proxy if it caused an error, else ``None``.

    A value that the database refuses is no outage: no later try would help.
    """
    if refused_value(error) is not None:
        return None
    found = None
    for cause in _chain(error):
        if isinstance(cause, (StorageInternalError, sa.exc.SQLAlchemyError)) or (
            _proxy_status(cause) in _PROXY_AWAY
        ):
            found = message(cause)
    return found


def refused_value(error: BaseException) -> BaseException | None:
    """Return the error by which a database refused a value, too long for its column perhaps."""
    return next((one for one in _chain(error) if isinstance(one, sa.exc.DataError)), None)


def may_pass(error: BaseException) -> bool:
    """Tell whether a database was away or undid a transaction, so that it may work later."""
    return _temporary_cause(error) is not None or is_server_away(error)


def is_server_away(error: BaseException) -> bool:
    """Tell whether a database server does not answer, but may answer later."""
    return any(
        isinstance(cause, sa.exc.OperationalError)
        and not type(cause.orig).__module__.startswith("sqlite3")
        and (
            cause.connection_invalidated
            or (cause.statement is None and _may_come_back(cause.orig))
        )
        for cause in _chain(error)
    )


def _may_come_back(error: Any) -> bool:
    """Tell whether a server that refused a connection may accept one later."""
    if error.args and isinstance(error.args[0], int):  # pymysql
        return error.args[0] in _MYSQL_AWAY
    return not any(word in str(error).lower() for word in _REFUSED)


def _temporary_cause(error: BaseException) -> BaseException | None:
    return next(filter(_is_temporary, _chain(error)), None)


def _is_temporary(error: BaseException) -> bool:
    """Tell whether a transaction that failed may work later."""
    if not isinstance(error, sa.exc.DBAPIError):
        away = _proxy_status(error) in _PROXY_AWAY
        return away and _PROXY_ALIVE not in str(error.details())  # type: ignore[attr-defined]
    if error.connection_invalidated:
        return True
    cause = error.orig
    if getattr(cause, "sqlstate", None) in _POSTGRESQL_UNDONE:
        return True
    if type(cause).__module__.startswith("sqlite3"):
        return any(word in str(cause).lower() for word in _SQLITE_UNDONE)
    code = cause.args[0] if cause is not None and cause.args else None
    return isinstance(code, int) and code in _MYSQL_UNDONE


def _proxy_status(error: BaseException) -> str | None:
    """Return the gRPC status of a failed call to a proxy; ``None`` for other errors."""
    grpc = sys.modules.get("grpc")  # without it there are no such errors
    if grpc is None or not isinstance(error, grpc.RpcError):
        return None
    return str(error.code().name)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:  # Optuna wraps them
        yield error
        error = error.__cause__ or error.__context__
