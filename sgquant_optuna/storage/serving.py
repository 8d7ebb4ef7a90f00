"""Serves a database to hundreds of workers by one process, a gRPC proxy."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from optuna.storages import get_storage

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.storage.databases import StudyDatabase
from sgquant_optuna.storage.opening import open_storage
from sgquant_optuna.storage.proxied import DEFAULT_PORT, KEEPALIVE, REFUSAL
from sgquant_optuna.storage.urls import missing_driver, resolve_url


def serve_storage(
    url: str | Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    threads: int = 10,
    wait: float = 0.0,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve a database at ``grpc://HOST:PORT`` until the process is stopped.

    There is neither login nor encryption: everybody who reaches the port may write. Keep it in a
    private network.

    Args:
        url:
            URL of a database, or path of an SQLite file, as of :func:`open_storage`.
        host:
            Address to listen on.
        port:
            Port to listen on.
        threads:
            Number of requests that are answered at a time.
        wait:
            Seconds to wait for a database server that does not answer yet.
        ready:
            Function that is called when the server listens.

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
    storage = open_storage(url, wait=wait)
    if not isinstance(storage, StudyDatabase):
        raise ValueError("serve: expected a database (SQLite, PostgreSQL, MariaDB) to serve")
    from optuna.storages._grpc.auto_generated.api_pb2_grpc import (
        add_StorageServiceServicer_to_server,
    )
    from optuna.storages._grpc.servicer import OptunaStorageProxyService

    # Optuna's run_grpc_proxy_server has no call when it listens, and lets a second server share
    # its port: each would get half of the workers. gRPC takes this option from its caller alone.
    server = grpc.server(
        ThreadPoolExecutor(max_workers=threads),
        interceptors=[_refusals()],
        options=[
            ("grpc.so_reuseport", 0),
            # Workers that ask for a sign more often are sent away by default.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000 * KEEPALIVE // 2),
            ("grpc.keepalive_time_ms", 1000 * KEEPALIVE),
        ],
    )
    service = OptunaStorageProxyService(get_storage(storage))  # with Optuna's cache
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


def _refusals() -> Any:
    """Return what sends an error of ours as such; it would look like an outage to a worker."""
    import grpc

    class Refusals(grpc.ServerInterceptor):
        def intercept_service(self, continuation: Any, details: Any) -> Any:
            handler = continuation(details)
            if handler is None or handler.unary_unary is None:
                return handler

            def call(request: Any, context: Any) -> Any:
                try:
                    return handler.unary_unary(request, context)
                except StorageError as error:
                    context.abort(grpc.StatusCode[REFUSAL], str(error))

            return grpc.unary_unary_rpc_method_handler(
                call, handler.request_deserializer, handler.response_serializer
            )

    return Refusals()
