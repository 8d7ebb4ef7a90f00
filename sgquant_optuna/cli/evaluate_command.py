"""``sgquant evaluate``: accuracy, bytes, peak memory and time of a packed model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard

import typer

from sgquant_optuna.cli.options import Quiet

if TYPE_CHECKING:
    from rich.table import Table

    from sgquant_optuna.packed.evaluation import Evaluation

_LARGEST = 10**9  # trial or number of trainings that is shown
_LONGEST_NAME = 200  # characters


def evaluate(
    file: Annotated[Path, typer.Argument(help="File of `sgquant export`.")],
    root: Annotated[
        Path | None,
        typer.Option(envvar="SGQUANT_DATA", show_default="data", help="Folder of data sets."),
    ] = None,
    test: Annotated[
        bool,
        typer.Option("--test", help="Look at the test nodes too: once more than the report did."),
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved timed runs.")] = 7,
    quiet: Quiet = False,
) -> None:
    """Measure accuracy, bytes, peak memory and time of a packed model against float32."""
    from sgquant_optuna.cli.console import console
    from sgquant_optuna.cli.logs import quiet_optuna
    from sgquant_optuna.packed.evaluation import evaluate_packed

    quiet_optuna()
    if not file.is_file():
        raise ValueError(f"packed model: expected a file at {file}, found none")
    with console(stderr=True, quiet=quiet).status("measuring"):
        found = evaluate_packed(file, root, test=test, repeats=repeats)
    console().print(_table(file, found))


def _table(file: Path, found: Evaluation) -> Table:
    from rich.table import Table

    from sgquant_optuna.cli.console import plain
    from sgquant_optuna.study.byte_sizes import megabytes

    origin = found.provenance
    # Names of studies, files and sites may look like markup.
    table = Table(title=plain(f"{file.name}{_source(origin)}"))
    for column in ("", "float32", "packed", ""):
        table.add_column(column, justify="right" if column else "left")
    table.add_row(
        "validation accuracy",
        _percent(origin.get("full_precision_accuracy")),
        f"{found.validation_accuracy:.2f} %",
        _recorded(origin),
    )
    final = _final_row(origin.get("final"))
    if final is not None:
        table.add_row("test, of the final report", *final)
    if found.test_accuracy is not None:
        table.add_row("test, opened now", "", f"{found.test_accuracy:.2f} %", "by --test")
    stored = sum(found.stored_nbytes.values())
    equal = "equal to" if stored == found.honest_nbytes else f"not the {found.honest_nbytes:,} of"
    table.add_row(
        "features stored",
        megabytes(found.full_precision_nbytes),
        megabytes(stored),
        f"{found.full_precision_nbytes / stored:.1f}x smaller, {equal} the honest accounting",
    )
    for name, nbytes in found.stored_nbytes.items():
        table.add_row(plain(f"  {name}"), "", megabytes(nbytes), "")
    parts = ", ".join(f"{name} {megabytes(size)}" for name, size in found.file_parts.items())
    table.add_row("file", "", megabytes(found.file_nbytes), plain(parts))
    if found.peaks is not None:
        full, packed = found.peaks["float32"], found.peaks["packed"]
        table.add_row(
            "peak memory of a pass",
            megabytes(full),
            megabytes(packed),
            f"{full / packed:.1f}x smaller, each in a process of its own",
        )
    table.add_row(
        "time of a pass",
        "1",
        f"{found.time_pyg:.2f}",
        f"{found.time_sparse:.2f} of float32 with sparse products; median of {found.repeats}",
    )
    return table


def _source(origin: Mapping[str, Any]) -> str:
    """Name trial and study of a file; nothing if the user's provenance does not."""
    trial, study = origin.get("trial"), origin.get("study")
    if type(trial) is not int or abs(trial) > _LARGEST or not isinstance(study, str):
        return ""
    name = study if len(study) <= _LONGEST_NAME else f"{study[:_LONGEST_NAME]}..."
    return f": trial {trial} of {name}"


def _recorded(origin: Mapping[str, Any]) -> str:
    """Say the accuracies of the export and of the trial, as far as the provenance has them."""
    texts = {
        "at export": _percent(origin.get("accuracy")),
        "trial's mean": _percent(origin.get("trial_accuracy")),
    }
    return ", ".join(f"{name} {text}" for name, text in texts.items() if text)


def _final_row(final: object) -> tuple[str, str, str] | None:
    """Return the accuracies of a final report and their origin; ``None`` if there is none."""
    if not isinstance(final, Mapping):
        return None
    kinds = ("full_precision_test", "quantized_test")
    texts = [_percent(_mean(final.get(kind))) for kind in kinds]
    if not all(texts):
        return None
    seeds = final.get("seeds")
    many = f"{seeds} " if type(seeds) is int and 0 < seeds <= _LARGEST else ""
    return texts[0], texts[1], f"mean of {many}fresh trainings, not of this one"


def _mean(values: object) -> float | None:
    """Return the mean of a list of accuracies; ``None`` for anything else."""
    if not isinstance(values, list) or not values or not all(map(_is_percent, values)):
        return None
    return float(sum(values) / len(values))


def _percent(value: object) -> str:
    """Write an accuracy; nothing if it is none."""
    return f"{value:.2f} %" if _is_percent(value) else ""


def _is_percent(value: object) -> TypeGuard[float]:
    """Whether a value is a number from 0 to 100; JSON has NaN and whole numbers of any length."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100
