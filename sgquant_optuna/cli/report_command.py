"""``sgquant report``: what a study found, from the database alone."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    budget: Annotated[
        str | None,
        typer.Option(help="Answer instead what fits in so many bytes: 4MB. Nothing is trained."),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            help="Answer instead what another drop allows: 0.5 in the unit of the metric (points "
            "of accuracy), or 2% of full precision."
        ),
    ] = None,
) -> None:
    """Show the bits, the accuracy and the memory of the best trial, or answer another limit."""
    from sgquant_optuna.cli.console import console
    from sgquant_optuna.cli.logs import quiet_optuna
    from sgquant_optuna.storage.out_files import check_out_file, write_out_file
    from sgquant_optuna.study.loading import load_study
    from sgquant_optuna.study.report import report as report_on

    quiet_optuna()
    if out is not None:
        check_out_file(out)
    limit = _limit(budget, max_drop, format_)
    opened = load_study(study, storage=storage)
    if limit:
        _answer(opened, limit, format_, out)
        return
    found = report_on(opened)
    if format_ is Format.TABLE and out is None:
        console().print(found)
        return
    text = f"{found}\n" if format_ is Format.TABLE else _written(opened, found, format_)
    if out is None:
        typer.echo(text, nl=False)
        return
    write_out_file(out, text)


def _limit(budget: str | None, max_drop: str | None, format_: Format) -> dict[str, Any]:
    """Return the other limit that is asked for by its name, if one is."""
    from sgquant_optuna.study.byte_sizes import parse_bytes
    from sgquant_optuna.study.limit import plain_drop

    if budget is None and max_drop is None:
        return {}
    if budget is not None and max_drop is not None:
        raise ValueError("expected --budget or --max-drop, got both")
    if format_ not in (Format.TABLE, Format.JSON):
        raise ValueError(f"--format: expected table or json for another limit, got {format_}")
    if max_drop is not None:
        return {"max_drop": plain_drop(max_drop, what="--max-drop")}
    assert budget is not None
    return {"budget_bytes": parse_bytes(budget, what="--budget")}


def _answer(study: optuna.Study, limit: dict[str, Any], format_: Format, out: Path | None) -> None:
    import io

    from rich.console import Console

    from sgquant_optuna.cli.console import console
    from sgquant_optuna.storage.out_files import write_out_file
    from sgquant_optuna.study.answers import answer

    found = answer(study, **limit)
    file = io.StringIO()
    if format_ is Format.JSON:
        file.write(found.to_json())
    elif out is None:
        console().print(found)
        return
    else:
        Console(file=file, width=100, no_color=True).print(found)
    if out is None:
        typer.echo(file.getvalue(), nl=False)
    else:
        write_out_file(out, file.getvalue())


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
