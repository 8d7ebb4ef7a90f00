"""Waits for a database that restarts or is full, instead of losing hours of training."""

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

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

T = TypeVar("T")

_logger = logging.getLogger(__name__)
PATIENCE = 300.0  # seconds
REPEATABLE = (
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "get_trial",
    "get_trial_id_from_study_id_trial_number",
    "set_study_user_attr",
    "set_study_system_attr",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "set_trial_intermediate_value",
)
"""What may happen twice in any storage: reading, and writing the same under a key."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds
# Words of PostgreSQL's refusals that waiting does not mend; its drivers give no code here.
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
# MariaDB: cannot connect, lost, too many connections, shutting down.
_MYSQL_AWAY = {1040, 1053, 1927, 2002, 2003, 2006, 2013}
# MariaDB: record changed, lock wait timeout, deadlock, disk full. The transaction is undone.
_MYSQL_UNDONE = {1020, 1021, 1205, 1213, 1114}
# PostgreSQL: serialization, deadlock, disk full.
_POSTGRESQL_UNDONE = {"40001", "40P01", "53100"}
_SQLITE_UNDONE = ("disk is full", "database is locked", "disk i/o error", "unable to open")
_PROXY_AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN")  # status codes of gRPC
_PROXY_ALIVE = "Exception calling application"  # details of what the proxy itself ran into


def told(error: BaseException) -> str:
    """Return what an error of a database or its proxy says, in one line."""
    if _proxy_status(error) is not None:
        text = str(error.details())  # type: ignore[attr-defined]
    else:
        text = str(getattr(error, "orig", None) or error)
    lines = text.strip().splitlines()
    return lines[0] if lines else type(error).__name__


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
            _logger.warning("database: %s; trying again for up to %.0f s", told(error), left)
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
            cause = next(filter(_is_passing, _chain(error)), None)
            if cause is None or not patience.pause(cause):
                raise


def make_patient(storage: type, names: Iterable[str]) -> None:
    """Let methods that may happen twice be repeated for the ``patience`` of their storage."""

    def patient(method: Any) -> Any:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return repeat_patiently(lambda: method(self, *args, **kwargs), self.patience)

        return call

    for name in names:
        setattr(storage, name, patient(getattr(storage, name)))


def write_state_once(
    storage: BaseStorage,
    write: Callable[[], bool],
    trial_id: int,
    state: TrialState,
    values: Sequence[float] | None,
    seconds: float,
) -> bool:
    """Write the state of a trial, in several tries if need be, and return what Optuna returns.

    Args:
        storage:
            Where the result is looked for after a broken try.
        write:
            Writes it.
        trial_id:
            Of the trial.
        state:
            Its new state, not ``WAITING``: a trial that was given back may be another's by now.
        values:
            Of a complete trial.
        seconds:
            How long to repeat it.
    """
    tries = 0

    def try_to_write() -> bool:
        nonlocal tries
        tries += 1
        try:
            return write()
        except UpdateFinishedTrialError:
            # Only who runs a trial completes it: it was this process, before the break.
            if tries > 1 and values is not None:
                stored = storage.get_trial(trial_id)
                if stored.state == state and stored.values == [float(v) for v in values]:
                    return True
            raise

    return repeat_patiently(try_to_write, seconds)


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


def outage(error: BaseException) -> str | None:
    """Return what the database or its proxy says, if an error goes back to it, else ``None``."""
    said = None
    for cause in _chain(error):
        if isinstance(cause, (StorageInternalError, sa.exc.SQLAlchemyError)) or (
            _proxy_status(cause) in _PROXY_AWAY
        ):
            said = told(cause)
    return said


def is_server_away(error: BaseException) -> bool:
    """Tell whether a database server did not answer, or no longer, and may be there later."""
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
    """Tell whether a server that cannot be connected to may be there later."""
    if error.args and isinstance(error.args[0], int):  # pymysql
        return error.args[0] in _MYSQL_AWAY
    return not any(word in str(error).lower() for word in _REFUSED)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:  # Optuna wraps them
        yield error
        error = error.__cause__ or error.__context__


def _proxy_status(error: BaseException) -> str | None:
    """Return the status of a call to a proxy that failed."""
    grpc = sys.modules.get("grpc")  # without it there are no such errors
    if grpc is None or not isinstance(error, grpc.RpcError):
        return None
    return str(error.code().name)  # of each error of a call


def _is_passing(error: BaseException) -> bool:
    """Tell whether a broken transaction may work later."""
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
