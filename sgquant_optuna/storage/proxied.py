"""Storages that are no database of their own: a gRPC proxy, and a journal file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.storages import GrpcStorageProxy, JournalStorage
from sqlalchemy.engine import URL

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.storage.heartbeat import AttributeHeartbeat
from sgquant_optuna.storage.urls import missing_driver, shown_url

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

DEFAULT_PORT = 13000
_PROXY_TIMEOUT = 10.0  # seconds


class BeatingProxy(AttributeHeartbeat, GrpcStorageProxy):
    """A gRPC proxy whose trials beat."""


class BeatingJournal(AttributeHeartbeat, JournalStorage):
    """A journal whose trials beat."""


def open_proxy(url: URL, *, heartbeat_interval: int, grace_period: int) -> BaseStorage:
    """Connect to a proxy that ``sgquant serve`` runs.

    Raises:
        StorageError:
            If grpcio is missing or nobody answers.
    """
    if url.password is not None or url.username is not None or url.database:
        raise StorageError(f"storage {shown_url(url)}: expected grpc://HOST:PORT, and no login")
    try:
        import grpc  # noqa: F401
    except ImportError as error:
        raise missing_driver(url) from error
    proxy = BeatingProxy(host=url.host or "127.0.0.1", port=url.port or DEFAULT_PORT)
    try:
        proxy.wait_server_ready(timeout=_PROXY_TIMEOUT)
    except ConnectionError as error:
        proxy.close()
        raise StorageError(
            f"storage {shown_url(url)}: nobody answers; start one there: sgquant serve --storage "
            "URL"
        ) from error
    proxy.start_beating(heartbeat_interval, grace_period)
    return proxy


def open_journal(
    url: URL, *, create: bool, heartbeat_interval: int, grace_period: int
) -> BaseStorage:
    """Open a journal file.

    Raises:
        StorageError:
            If it is missing and not to be made, cannot be written, or is no journal.
    """
    from optuna.storages.journal import JournalFileBackend

    if not url.database or url.host:
        raise StorageError(f"storage {shown_url(url)}: expected journal:///FILE")
    path = Path(url.database)
    if not create and not path.exists():
        raise StorageError(f"storage {path}: there is no such file; sgquant search makes one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
        journal: Any = BeatingJournal(JournalFileBackend(str(path)))
        journal.get_all_studies()  # reads it all
    except OSError as error:
        raise StorageError(f"storage {path}: cannot be written ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"storage {path}: expected an Optuna journal, got another file") from (
            error
        )
    journal.start_beating(heartbeat_interval, grace_period)
    return journal  # type: ignore[no-any-return]
