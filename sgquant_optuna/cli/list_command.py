"""``sgquant list``: the studies of a storage, one line each."""

from __future__ import annotations

import typer

from sgquant_optuna.cli.options import Storage


def list_studies(storage: Storage = None) -> None:
    """List the studies of a storage: their trials, best saving and state."""
    import optuna
    from rich.table import Table

    from sgquant_optuna.cli.console import console, plain
    from sgquant_optuna.cli.logs import quiet_optuna
    from sgquant_optuna.exceptions import StudyMismatchError
    from sgquant_optuna.storage import open_storage
    from sgquant_optuna.study.status import study_status

    quiet_optuna()
    opened = open_storage(storage, create=False)
    names = sorted(optuna.get_all_study_names(opened))
    if not names:
        typer.echo("no study yet; sgquant search makes one")
        return
    table = Table("study", show_edge=False, pad_edge=False)
    for column in ("trials", "running", "failed", "best saving"):
        table.add_column(column, justify="right")
    table.add_column("state")
    for name in names:
        study = optuna.load_study(study_name=name, storage=opened)
        try:
            status = study_status(study)
        except StudyMismatchError:
            table.add_row(plain(name), "", "", "", "", "of another version")
            continue
        planned = "" if status.planned is None else f"/{status.planned:,}"
        table.add_row(
            plain(name),
            f"{status.finished:,}{planned}",
            f"{status.running:,}",
            f"{status.failed:,}",
            "-" if status.best_saving is None else f"{status.best_saving:.1f}x",
            status.state.value,
        )
    console().print(table)
