"""One door to study databases: a URL or a file becomes an Optuna storage, or a clear error."""

from __future__ import annotations

import os
import random
import time
import warnings
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from sgquant_optuna.exceptions import StorageError

STORAGE_VARIABLE = "SGQUANT_STORAGE"
DEFAULT_FILE = Path("storage") / "sgquant.db"

_DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",
}
_EXTRAS = {"postgresql": "postgresql", "mysql": "mysql"}
_SQLITE_TIMEOUT = 60.0  # seconds that a writer waits for another
_HEARTBEAT_INTERVAL, _GRACE_PERIOD = 60, 300  # seconds
_MAX_RETRIES = 2
_CREATION_TRIES = 10


def open_storage(url: str | Path | None = None, *, create: bool = True) -> BaseStorage:
    """Open a study database.

    SQLite files are right for many processes on one machine: they use write-ahead logging, take
    the write lock when a transaction begins, and wait a minute for it. Trials of a killed process
    are found by their heartbeat and run again.

    Args:
        url:
            A database URL (``sqlite:///FILE``, ``postgresql://...``, ``mysql://...``), or a file
            for SQLite; ``$SGQUANT_STORAGE`` or ``storage/sgquant.db`` by default.
        create:
            Whether a missing SQLite file is made.

    Raises:
        StorageError:
            If the URL is wrong, the driver missing, the server out of reach, or the file no
            database, of another version, or not to be written.
    """
    parsed = _parse(url if url is not None else os.environ.get(STORAGE_VARIABLE, DEFAULT_FILE))
    shown = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() == "sqlite":
        _prepare_file(parsed, create=create)
    for attempt in range(1, _CREATION_TRIES + 1):
        try:
            return _connect(parsed)
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get(parsed.get_backend_name())
            hint = f"pip install 'sgquant-optuna[{extra}]'" if extra else "install it"
            raise StorageError(
                f"storage {shown}: the driver {error.name} is missing; {hint}"
            ) from error
        except ImportError as error:  # Optuna's own words for a driver that cannot be loaded
            extra = _EXTRAS.get(parsed.get_backend_name(), "")
            raise StorageError(
                f"storage {shown}: its driver is missing; pip install 'sgquant-optuna[{extra}]'"
            ) from error
        except sa.exc.SQLAlchemyError as error:
            # Processes that start together race to make the tables; the loser finds them made.
            if attempt == _CREATION_TRIES or not _is_creation_race(error):
                raise StorageError(f"storage {shown}: {_first_line(error)}") from error
            time.sleep(random.uniform(0.05, 0.2) * attempt)
        except RuntimeError as error:  # a schema of another version
            raise StorageError(
                f"storage {shown}: made by another version of Optuna ({_first_line(error)}); "
                f"try: optuna storage upgrade --storage {shown}"
            ) from error
    raise AssertionError("the last attempt returns or raises")


class SqliteStorage(RDBStorage):
    """Optuna's database storage on a SQLite file that many processes share.

    Args:
        url:
            ``sqlite:///FILE``.
        options:
            Options of :class:`optuna.storages.RDBStorage`.
    """

    def __init__(self, url: str, **options: Any) -> None:
        options["engine_kwargs"] = {"connect_args": {"timeout": _SQLITE_TIMEOUT}}
        super().__init__(url, **options)
        self._install_hooks()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Install the hooks again: unpickling makes a new engine without them."""
        super().__setstate__(state)
        self._install_hooks()

    def _install_hooks(self) -> None:
        sa.event.listen(self.engine, "connect", _on_connect)
        sa.event.listen(self.engine, "begin", _on_begin)
        self.engine.dispose()  # connections made before the hooks are not reused


def _on_connect(connection: Any, record: object) -> None:
    connection.isolation_level = None  # the driver's own BEGIN would come too late
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _on_begin(connection: sa.Connection) -> None:
    # Reading a trial's state and writing it become one step: no trial is taken twice.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _parse(url: str | Path) -> URL:
    if isinstance(url, Path) or "://" not in url:
        return URL.create("sqlite", database=str(url))
    try:
        parsed = sa.make_url(url)
        parsed = parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))
        parsed.get_dialect()
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ValueError) as error:
        raise StorageError(
            f"storage: expected a URL such as sqlite:///storage/sgquant.db or "
            f"postgresql://USER@HOST/DATABASE, got {url!r}"
        ) from error
    return parsed


def _prepare_file(url: URL, *, create: bool) -> None:
    if not url.database or url.database == ":memory:":
        raise StorageError("storage: expected a file for SQLite, got one in memory")
    path = Path(url.database)
    if not create and not path.exists():
        raise StorageError(f"storage {path}: there is no such file; sgquant search makes one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"storage {path}: cannot make its folder ({error.strerror})") from error


def _connect(url: URL) -> RDBStorage:
    text = url.render_as_string(hide_password=False)
    options: dict[str, Any] = {
        "heartbeat_interval": _HEARTBEAT_INTERVAL,
        "grace_period": _GRACE_PERIOD,
        "heartbeat_stale_trial_callback": RetryHeartbeatStaleTrialCallback(max_retry=_MAX_RETRIES),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if url.get_backend_name() == "sqlite":
            return SqliteStorage(text, **options)
        # A worker holds no connection during its minutes of training, so hundreds fit a server.
        return RDBStorage(text, engine_kwargs={"poolclass": NullPool}, **options)


def _is_creation_race(error: sa.exc.SQLAlchemyError) -> bool:
    text = str(error).lower()
    return any(word in text for word in ("already exists", "duplicate", "unique", "locked"))


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
