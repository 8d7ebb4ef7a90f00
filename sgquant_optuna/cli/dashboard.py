"""``sgquant dashboard``: watch studies in the browser."""

from __future__ import annotations

from typing import Annotated

import typer

from sgquant_optuna.cli.options import Storage


def dashboard(
    storage: Storage = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8080,
) -> None:
    """Open the Optuna dashboard on the study database. It has no login: keep it local."""
    import optuna_dashboard

    from sgquant_optuna.storage import open_storage

    opened = open_storage(storage, create=False)
    typer.echo(f"Dashboard on http://{host}:{port}/ (stop with Ctrl+C)")
    optuna_dashboard.run_server(opened, host=host, port=port)
