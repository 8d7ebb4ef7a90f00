"""``sgquant report``: what a study found, from the database alone."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgquant_optuna.cli.options import Storage, StudyArgument

if TYPE_CHECKING:
    import optuna

    from sgquant_optuna.study.report import StudyReport


class Format(StrEnum):
    """How the report is written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"
    HTML = "html"


def report(
    study: StudyArgument = None,
    storage: Storage = None,
    format_: Annotated[
        Format,
        typer.Option(
            "--format",
            help="Of the report; csv has a line for each trial, html has the plots in it.",
        ),
    ] = Format.TABLE,
    out: Annotated[
        Path | None, typer.Option(show_default="the terminal", help="File to write it to.")
    ] = None,
) -> None:
    """Show the bits, the accuracy and the memory of the best trial."""
    from rich.console import Console

    from sgquant_optuna.cli.logs import quiet_optuna
    from sgquant_optuna.storage.out_files import check_out_file, write_out_file
    from sgquant_optuna.study.loading import load_study
    from sgquant_optuna.study.report import report as report_on

    quiet_optuna()
    if out is not None:
        check_out_file(out)
    opened = load_study(study, storage=storage)
    found = report_on(opened)
    if format_ is Format.TABLE and out is None:
        Console().print(found)
        return
    text = f"{found}\n" if format_ is Format.TABLE else _written(opened, found, format_)
    if out is None:
        typer.echo(text, nl=False)
        return
    write_out_file(out, text)


def _written(study: optuna.Study, found: StudyReport, format_: Format) -> str:
    from sgquant_optuna.study.formats import to_csv, to_html, to_json, to_markdown

    if format_ is Format.JSON:
        return to_json(found)
    if format_ is Format.CSV:
        return to_csv(study, found)
    if format_ is Format.MARKDOWN:
        return to_markdown(found)
    from sgquant_optuna.study.figures import INSTALL_HINT, can_draw, figures
    from sgquant_optuna.study.measurements import measurements

    if can_draw():
        return to_html(found, figures(measurements(study)))
    return to_html(found, {}, note=INSTALL_HINT)
