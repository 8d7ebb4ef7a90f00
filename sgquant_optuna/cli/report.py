"""``sgquant report``: what a study found, from the database alone."""

from __future__ import annotations

from typing import Annotated

import typer

from sgquant_optuna.cli.options import Storage


def report(
    study: Annotated[
        str | None,
        typer.Argument(help="Name of the study; may be left out if there is only one."),
    ] = None,
    storage: Storage = None,
) -> None:
    """Show the bits, the accuracy and the memory of the best trial."""
    from rich.console import Console

    from sgquant_optuna.study import load_study
    from sgquant_optuna.study_report import report as report_on

    Console().print(report_on(load_study(study, storage=storage)))
