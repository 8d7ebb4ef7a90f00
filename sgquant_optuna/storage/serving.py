"""One process that talks to the database for hundreds of workers."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from optuna.storages import run_grpc_proxy_server
from optuna.storages._cached_storage import _CachedStorage

from sgquant_optuna.storage.databases import StudyDatabase
from sgquant_optuna.storage.opening import open_storage
from sgquant_optuna.storage.proxied import DEFAULT_PORT
from sgquant_optuna.storage.urls import missing_driver, parse_url

_logger = logging.getLogger(__name__)


def serve_storage(
    url: str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    threads: int = 10,
) -> None:
    """Serve a database to ``grpc://HOST:PORT`` until the process is stopped.

    There is neither login nor encryption: whoever reaches the port may write. Keep it in a private
    network.

    Args:
        url:
            As of :func:`open_storage`; a database.
        host:
            Address to listen on.
        port:
            Port to listen on.
        threads:
            Requests that are answered at a time.

    Raises:
        StorageError:
            If the database cannot be opened or grpcio is missing.
        ValueError:
            If the storage is no database.
    """
    try:
        import grpc  # noqa: F401
    except ImportError as error:
        raise missing_driver(parse_url(f"grpc://{host}:{port}")) from error
    storage = open_storage(url)
    if not isinstance(storage, StudyDatabase):
        raise ValueError("serve: expected a database (SQLite, PostgreSQL, MariaDB) to serve")
    _logger.info("serving on grpc://%s:%d", host, port)
    run_grpc_proxy_server(
        _CachedStorage(storage),
        host=host,
        port=port,
        thread_pool=ThreadPoolExecutor(max_workers=threads),
    )
