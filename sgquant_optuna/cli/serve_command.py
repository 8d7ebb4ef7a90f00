"""``sgquant serve``: one process that talks to the database for hundreds of workers."""

from __future__ import annotations

from typing import Annotated

import typer

from sgquant_optuna.cli.options import Storage, Wait, seconds_to_wait


def serve(
    storage: Storage = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 13000,
    wait: Wait = None,
) -> None:
    """Serve a database to grpc://HOST:PORT. It has no login: keep it in a private network."""
    from sgquant_optuna.cli.logs import quiet_optuna
    from sgquant_optuna.storage import serve_storage

    quiet_optuna()
    serve_storage(
        storage,
        host=host,
        port=port,
        wait=seconds_to_wait(wait),
        ready=lambda: typer.echo(f"Serving on grpc://{host}:{port} (stop with Ctrl+C)"),
    )
