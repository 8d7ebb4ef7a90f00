"""``sgquant status``: how a search is going."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from sgquant_optuna.cli.options import Storage, StudyArgument

if TYPE_CHECKING:
    from rich.table import Table

    from sgquant_optuna.study.status import StudyStatus, WorkerStatus

_MAX_WORKERS = 20


def status(
    study: StudyArgument = None,
    storage: Storage = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print it as JSON, for scripts.")
    ] = False,
) -> None:
    """Show how a search is going: trials by state, speed, time left, and its workers."""
    import json
    from dataclasses import asdict

    from sgquant_optuna.cli.console import console
    from sgquant_optuna.cli.logs import quiet_optuna
    from sgquant_optuna.study.loading import load_study
    from sgquant_optuna.study.status import study_status

    quiet_optuna()
    found = study_status(load_study(study, storage=storage))
    if as_json:
        described = {**asdict(found), "state": found.state.value}
        typer.echo(json.dumps(described, indent=2, default=datetime.isoformat))
        return
    terminal = console()
    terminal.print(_summary(found))
    if found.workers:
        terminal.print()
        terminal.print(_workers(found.workers))


def _summary(found: StudyStatus) -> Table:
    from rich.table import Table

    from sgquant_optuna.cli.console import plain

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("study", plain(found.study_name))
    table.add_row("state", found.state.value)
    planned = " (planned: -)" if found.planned is None else f" of {found.planned:,}"
    if found.ended_early is not None:
        table.add_row("ended early", found.ended_early.reason)
    table.add_row("finished", f"{found.finished:,}{planned}")
    table.add_row("running", f"{found.running:,}")
    if found.stale:
        table.add_row("stale", f"{found.stale:,} (no sign of life; the next worker repeats them)")
    table.add_row("waiting", f"{found.waiting:,}")
    table.add_row("failed", f"{found.failed:,}")
    table.add_row(
        "speed", f"{found.per_hour_lately:,.1f} trials/h lately, {found.per_hour:,.1f} overall"
    )
    if found.seconds_left is not None:
        table.add_row("time left", f"about {timedelta(seconds=round(found.seconds_left))}")
    if found.best_saving is not None and found.best_drop is not None and found.metric is not None:
        drop = plain(found.metric.drop(found.best_drop))
        table.add_row("best saving", plain(f"{found.best_saving:.1f}x, drop ") + drop)
    return table


def _workers(workers: tuple[WorkerStatus, ...]) -> Table:
    from rich.table import Table

    from sgquant_optuna.cli.console import plain

    table = Table("worker", show_edge=False, pad_edge=False)
    for column in ("finished", "running", "last seen"):
        table.add_column(column, justify="right")
    now = datetime.now(UTC)
    for worker in workers[:_MAX_WORKERS]:
        ago = timedelta(seconds=round(max((now - worker.last_seen).total_seconds(), 0)))
        table.add_row(
            plain(worker.name), f"{worker.finished:,}", f"{worker.running:,}", f"{ago} ago"
        )
    if len(workers) > _MAX_WORKERS:
        table.caption = f"and {len(workers) - _MAX_WORKERS} more"
    return table
