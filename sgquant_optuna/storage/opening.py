"""Opens a storage by its URL, or says in one line why not."""

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
from sgquant_optuna.storage.retries import PATIENCE, Patience, is_server_away
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
_RACES = ("already exists", "duplicate", "unique", "locked")


def open_storage(
    url: str | Path | None = None,
    *,
    create: bool = True,
    heartbeat_interval: int = 60,
    grace_period: int = 300,
    patience: float = PATIENCE,
    wait: float = 0.0,
) -> BaseStorage:
    """Open a study database.

    SQLite files are right for many processes on one machine: they use write-ahead logging, take
    the write lock when a transaction begins, and wait a minute for it. Trials of a killed process
    are found by their heartbeat and run again. A database that restarts, or a disk that is full,
    is waited for; what was being written then is written once.

    Args:
        url:
            A database URL (``sqlite:///FILE``, ``postgresql://...``, ``mysql://...``), a proxy
            (``grpc://HOST:PORT``), an Optuna journal (``journal:///FILE``), or a file for SQLite;
            ``$SGQUANT_STORAGE`` or ``storage/sgquant.db`` by default.
        create:
            Whether a missing file, and tables in an empty database, are made.
        heartbeat_interval:
            Whole seconds between two heartbeats of a running trial.
        grace_period:
            Whole seconds without a heartbeat after which a trial is taken for dead.
        patience:
            Seconds that a database or a proxy is waited for while it is away, once it was there.
        wait:
            Seconds that opening waits for a server that does not answer: for processes that
            nobody watches, which may start while it restarts. A wrong login or name is told at
            once.

    Raises:
        StorageError:
            If the URL is wrong, the driver missing, the server out of reach, or the database
            none, of another version, of another program, not to be written, or empty and not to
            be made.
        ValueError:
            If an interval is not positive.
    """
    if heartbeat_interval <= 0 or grace_period <= heartbeat_interval or min(patience, wait) < 0:
        raise ValueError(
            "storage: expected 0 < heartbeat_interval < grace_period, patience and wait >= 0, got "
            f"{heartbeat_interval}, {grace_period}, {patience} and {wait}"
        )
    resolved = resolve_url(url)
    kind = resolved.get_backend_name()
    beats = {"heartbeat_interval": heartbeat_interval, "grace_period": grace_period}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if kind == PROXY:
            return open_proxy(resolved, wait=wait, patience=patience, **beats)
        if kind == JOURNAL:
            return open_journal(resolved, create=create, **beats)
        if kind == SQLITE:
            _prepare_file(resolved, create=create)
        return _open_database(resolved, create=create, wait=wait, patience=patience, **beats)


def _open_database(
    url: URL, *, create: bool, wait: float, patience: float, **beats: int
) -> StudyDatabase:
    text = url.render_as_string(hide_password=False)
    kind = SqliteFile if url.get_backend_name() == SQLITE else ServerDatabase
    retry = RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES)
    waiting, attempt = Patience(wait), 0
    while True:
        try:
            check_tables(url, create=create)
            return kind(text, patience=patience, heartbeat_stale_trial_callback=retry, **beats)
        # Optuna's own words for a driver that cannot be loaded are an ImportError too.
        except (ImportError, sa.exc.NoSuchModuleError) as error:
            raise missing_driver(url) from error
        except (sa.exc.SQLAlchemyError, StorageInternalError) as error:
            if is_server_away(error) and waiting.pause(error):
                continue
            # Processes that start together race to make the tables; the loser finds them made.
            attempt += 1
            if attempt == _CREATION_TRIES or not _is_creation_race(error):
                raise StorageError(f"storage {shown_url(url)}: {_reason(error, url)}") from error
            time.sleep(random.uniform(0.05, 0.2) * attempt)
        except RuntimeError as error:  # a schema of another version
            shown = shown_url(url)
            if "storage upgrade" in str(error):
                hint = (
                    f"an older Optuna; back it up, then: optuna storage upgrade --storage {shown}"
                )
            else:
                hint = "a newer Optuna; pip install -U optuna"
            raise StorageError(f"storage {shown}: made by {hint}") from error


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
    # Its log and index are made beside the file, so the folder counts too.
    for place in (path, path.parent):
        if place.exists() and not os.access(place, os.W_OK):
            raise StorageError(
                f"storage {path}: {place} cannot be written (permission denied); ask its owner, "
                "or copy the file to a folder of yours"
            )


def _is_creation_race(error: Exception) -> bool:
    text = f"{error} {error.__cause__}".lower()
    return any(word in text for word in _RACES)


def _reason(error: BaseException, url: URL) -> str:
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    cause = getattr(error, "orig", None) or error
    lines = str(cause).strip().splitlines()
    text = lines[0] if lines else type(cause).__name__
    return text.replace(str(url.password), "***") if url.password else text
