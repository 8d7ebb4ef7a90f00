"""One process that talks to the database for hundreds of workers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from optuna.storages._cached_storage import _CachedStorage

from sgquant_optuna.storage.databases import StudyDatabase
from sgquant_optuna.storage.opening import open_storage
from sgquant_optuna.storage.proxied import DEFAULT_PORT
from sgquant_optuna.storage.urls import missing_driver, resolve_url


def serve_storage(
    url: str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    threads: int = 10,
    ready: Callable[[], None] = lambda: None,
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
        ready:
            Called when the server listens.

    Raises:
        StorageError:
            If the database cannot be opened or grpcio is missing.
        ValueError:
            If the storage is no database, or the address cannot be listened on.
    """
    try:
        import grpc
    except ImportError as error:
        raise missing_driver(resolve_url(f"grpc://{host}:{port}")) from error
    storage = open_storage(url)
    if not isinstance(storage, StudyDatabase):
        raise ValueError("serve: expected a database (SQLite, PostgreSQL, MariaDB) to serve")
    from optuna.storages._grpc.auto_generated.api_pb2_grpc import (
        add_StorageServiceServicer_to_server,
    )
    from optuna.storages._grpc.servicer import OptunaStorageProxyService

    # Optuna's own server would share its port with another one, each with half of the workers.
    server = grpc.server(
        ThreadPoolExecutor(max_workers=threads), options=[("grpc.so_reuseport", 0)]
    )
    service = OptunaStorageProxyService(_CachedStorage(storage))
    add_StorageServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    try:
        server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise ValueError(
            f"serve: cannot listen on {host}:{port} (taken, or no address of this machine); "
            "choose another --port"
        ) from error
    server.start()
    ready()
    server.wait_for_termination()
