"""``sgquant dashboard``: watch studies in the browser."""

from __future__ import annotations

from typing import Annotated

import typer

from sgquant_optuna.cli.options import Artifacts, Storage, open_both


def dashboard(
    storage: Storage = None,
    artifacts: Artifacts = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 for any free one.", min=0, max=65535)
    ] = 8080,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name of this machine by which browsers may ask, beside --host and localhost; "
            "may be repeated.",
        ),
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Write nothing: no change, no note, no plot.")
    ] = False,
) -> None:
    """Open the Optuna dashboard on the study database. It has no login: keep it local.

    While it runs, it writes a note and plots for each study and renews them as trials finish.
    """
    from sgquant_optuna.cli.logs import quiet_optuna
    from sgquant_optuna.storage.artifacts import shown_artifacts
    from sgquant_optuna.storage.urls import shown_storage
    from sgquant_optuna.study.dashboard.notes import Place
    from sgquant_optuna.study.dashboard.server import serve

    quiet_optuna()
    shown = f"[{host}]" if ":" in host else host
    opened, store = open_both(storage, artifacts, create=False)
    serve(
        opened,
        store,
        host=host,
        port=port,
        place=Place(
            shown_storage(storage), None if artifacts is None else shown_artifacts(artifacts)
        ),
        ready=lambda found: typer.echo(f"Dashboard on http://{shown}:{found}/ (stop with Ctrl+C)"),
        allow_hosts=allow_host or (),
        read_only=read_only,
    )
