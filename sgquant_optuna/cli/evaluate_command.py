"""``sgquant evaluate``: accuracy, bytes, peak memory and time of a packed model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard

import typer

from sgquant_optuna.cli.options import Quiet, StudyFile

if TYPE_CHECKING:
    from rich.table import Table

    from sgquant_optuna.packed.evaluation import Evaluation
    from sgquant_optuna.study.metric_words import MetricWords

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
    study_file: StudyFile = None,
    quiet: Quiet = False,
) -> None:
    """Measure accuracy, bytes, peak memory and time of a packed model against float32."""
    from sgquant_optuna.cli.console import console
    from sgquant_optuna.cli.logs import quiet_optuna
    from sgquant_optuna.search.model_evaluation import evaluate_file

    quiet_optuna()
    if not file.is_file():
        raise ValueError(f"packed model: expected a file at {file}, found none")
    with console(stderr=True, quiet=quiet).status("measuring"):
        found = evaluate_file(file, root, study_file=study_file, test=test, repeats=repeats)
    console().print(_table(file, found))


def _table(file: Path, found: Evaluation) -> Table:
    from rich.table import Table

    from sgquant_optuna.cli.console import plain
    from sgquant_optuna.study.byte_sizes import megabytes
    from sgquant_optuna.study.metric_words import MetricWords

    origin, words = found.provenance, MetricWords(**found.metric)
    # Names of studies, files and sites may look like markup.
    table = Table(title=plain(f"{file.name}{_source(origin)}"))
    for column in ("", "float32", "packed", ""):
        table.add_column(column, justify="right" if column else "left")
    table.add_row(
        plain(f"validation {words.name}"),
        words.value(found.float32_validation_accuracy),
        words.value(found.validation_accuracy),
        _at_export(words, origin),
    )
    trial = _trial_row(words, origin)
    if trial is not None:
        table.add_row("validation, of the trial", *trial)
    final = _final_row(words, origin.get("final"))
    if final is not None:
        table.add_row("test, of the final report", *final)
    if found.test_accuracy is not None:
        assert found.float32_test_accuracy is not None
        accuracies = map(words.value, (found.float32_test_accuracy, found.test_accuracy))
        table.add_row("test, opened now", *accuracies, "by --test")
    stored = sum(found.stored_nbytes.values())
    equal = "equal to" if stored == found.honest_nbytes else f"not the {found.honest_nbytes:,} of"
    table.add_row(
        "features stored" if found.holds_features else "features, packed now",
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


def _at_export(words: MetricWords, origin: Mapping[str, Any]) -> str:
    """Say what both columns are of, and the accuracy at the export, if the provenance has it."""
    value = _value(words, origin.get("accuracy"))
    return f"of the same weights{f', packed at export {value}' if value else ''}"


def _trial_row(words: MetricWords, origin: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Return the accuracies that the trial saw; ``None`` if the provenance has none of them."""
    names = ("full_precision_accuracy", "trial_accuracy")
    full, quantized = (_value(words, origin.get(name)) for name in names)
    if not (full or quantized):
        return None
    return full, quantized, "means over its trainings, of which the file holds the first"


def _final_row(words: MetricWords, final: object) -> tuple[str, str, str] | None:
    """Return the accuracies of a final report and their origin; ``None`` if there is none."""
    if not isinstance(final, Mapping):
        return None
    kinds = ("full_precision_test", "quantized_test")
    texts = [_value(words, _mean(words, final.get(kind))) for kind in kinds]
    if not all(texts):
        return None
    seeds = final.get("seeds")
    many = f"{seeds} " if type(seeds) is int and 0 < seeds <= _LARGEST else ""
    return texts[0], texts[1], f"mean of {many}fresh trainings, not of this one"


def _mean(words: MetricWords, values: object) -> float | None:
    """Return the mean of a list of accuracies; ``None`` for anything else."""
    if not isinstance(values, list) or not values:
        return None
    if not all(_is_value(value, words) for value in values):
        return None
    return float(sum(values) / len(values))


def _value(words: MetricWords, value: object) -> str:
    """Write a value of the metric; nothing if it is none."""
    return words.value(value) if _is_value(value, words) else ""


def _is_value(value: object, words: MetricWords) -> TypeGuard[float]:
    """Whether a value is a number, of percent one from 0 to 100.

    JSON has NaN and whole numbers of any length.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 <= value <= 100 if words.unit == "%" else abs(value) <= _LARGEST
