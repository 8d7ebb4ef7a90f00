"""Opens a storage by its URL, or says in one line why it cannot."""

from __future__ import annotations

import os
import random
import time
import warnings
from pathlib import Path

import sqlalchemy as sa
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy.engine import URL

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.storage.databases import ServerDatabase, SqliteFile, StudyDatabase
from sgquant_optuna.storage.heartbeat import MAX_RETRIES
from sgquant_optuna.storage.proxied import open_journal, open_proxy
from sgquant_optuna.storage.retries import RETRY_SECONDS, Backoff, is_server_away, message
from sgquant_optuna.storage.tables import check_tables
from sgquant_optuna.storage.urls import (
    JOURNAL,
    PROXY,
    SQLITE,
    file_of,
    missing_driver,
    resolve_url,
    shown_url,
)

_CREATION_TRIES = 10
_CREATION_RACES = ("already exists", "duplicate", "unique", "locked")


def open_storage(
    url: str | Path | None = None,
    *,
    create: bool = True,
    heartbeat_interval: int = 60,
    grace_period: int = 300,
    retry_seconds: float = RETRY_SECONDS,
    wait: float = 0.0,
) -> BaseStorage:
    """Open a study database.

    SQLite files serve many processes of one machine: they use write-ahead logging, take the write
    lock when a transaction begins, and wait a minute for it. Trials of a killed process are found
    by their heartbeat and run again. If a database restarts or a disk is full, calls are repeated,
    and what was being written is written once.

    Args:
        url:
            URL of a database (``sqlite:///FILE``, ``postgresql://...``, ``mysql://...``), of a
            proxy (``grpc://HOST:PORT``) or of an Optuna journal (``journal:///FILE``), or path of
            an SQLite file; ``$SGQUANT_STORAGE`` or ``storage/sgquant.db`` by default.
        create:
            Whether a missing file, and tables in an empty database, are created.
        heartbeat_interval:
            Whole seconds between two heartbeats of a running trial.
        grace_period:
            Whole seconds without a heartbeat after which a trial counts as dead.
        retry_seconds:
            Seconds to repeat a call while an opened database or proxy is away.
        wait:
            Seconds to wait here for a server that does not answer, for processes that nobody
            watches and that may start while it restarts. A wrong login or name is reported at
            once.

    Raises:
        StorageError:
            If the URL is wrong, the driver missing or the server away; or if the database is no
            database, of another version, of another program, read-only, or empty and may not be
            created.
        ValueError:
            If an interval is not positive.
    """
    if not 0 < heartbeat_interval < grace_period or min(retry_seconds, wait) < 0:
        raise ValueError(
            "storage: expected 0 < heartbeat_interval < grace_period, retry_seconds and wait >= "
            f"0, got {heartbeat_interval}, {grace_period}, {retry_seconds} and {wait}"
        )
    resolved = resolve_url(url)
    kind = resolved.get_backend_name()
    beats = {"heartbeat_interval": heartbeat_interval, "grace_period": grace_period}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if kind == PROXY:
            return open_proxy(resolved, wait=wait, retry_seconds=retry_seconds, **beats)
        if kind == JOURNAL:
            return open_journal(resolved, create=create, **beats)
        if kind == SQLITE:
            _prepare_file(resolved, create=create)
        return _open_database(
            resolved, create=create, wait=wait, retry_seconds=retry_seconds, **beats
        )


def _open_database(
    url: URL, *, create: bool, wait: float, retry_seconds: float, **beats: int
) -> StudyDatabase:
    text = url.render_as_string(hide_password=False)
    kind = SqliteFile if url.get_backend_name() == SQLITE else ServerDatabase
    queue_again = RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES)
    backoff, attempt = Backoff(wait), 0
    while True:
        try:
            check_tables(url, create=create)
            return kind(
                text,
                retry_seconds=retry_seconds,
                heartbeat_stale_trial_callback=queue_again,
                **beats,
            )
        # Optuna reports a driver that cannot be loaded as an ImportError, too.
        except (ImportError, sa.exc.NoSuchModuleError) as error:
            raise missing_driver(url) from error
        except (sa.exc.SQLAlchemyError, StorageInternalError) as error:
            if is_server_away(error) and backoff.pause(error):
                continue
            # Processes that start together race to create the tables; the losers try again.
            attempt += 1
            if attempt == _CREATION_TRIES or not _is_creation_race(error):
                raise StorageError(f"storage {shown_url(url)}: {_reason(error, url)}") from error
            time.sleep(random.uniform(0.05, 0.2) * attempt)
        except RuntimeError as error:  # a schema of another version
            raise _other_version(url, error) from error


def _prepare_file(url: URL, *, create: bool) -> None:
    path = file_of(url)
    if path is None:
        if url.database and url.database.startswith("file:"):  # SQLite reads its options itself
            return
        raise StorageError("storage: expected a file for SQLite, got one in memory")
    if not create and not path.exists():
        raise StorageError(f"storage {path}: there is no such file; sgquant search makes one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"storage {path}: cannot make its folder ({error.strerror})") from error
    if path.is_dir():
        raise StorageError(f"storage {path}: expected a file for SQLite, got a folder")
    # SQLite creates its log and its index beside the file, so the folder is checked, too.
    for place in (path, path.parent):
        if place.exists() and not os.access(place, os.W_OK):
            raise StorageError(
                f"storage {path}: {place} cannot be written (permission denied); ask its owner, "
                "or copy the file to a folder of yours"
            )


def _is_creation_race(error: Exception) -> bool:
    text = f"{error} {error.__cause__}".lower()
    return any(word in text for word in _CREATION_RACES)


def _other_version(url: URL, error: RuntimeError) -> StorageError:
    shown = shown_url(url)
    if "storage upgrade" in str(error):
        hint = f"an older Optuna; back it up, then: optuna storage upgrade --storage {shown}"
    else:
        hint = "a newer Optuna; pip install -U optuna"
    return StorageError(f"storage {shown}: made by {hint}")


def _reason(error: BaseException, url: URL) -> str:
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    text = message(error)
    return text.replace(str(url.password), "***") if url.password else text
