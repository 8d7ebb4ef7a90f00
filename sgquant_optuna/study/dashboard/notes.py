"""The notes of a study and of its trials, in Markdown."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from sgquant_optuna.study.plain_tables import markdown_table, markdown_text
from sgquant_optuna.study.record import StudyRecord
from sgquant_optuna.study.report import StudyReport, megabytes
from sgquant_optuna.study.trial_result import TrialResult

PREDICTED_DROP = ("constraint 0", "objective 1")


@dataclass(frozen=True)
class Place:
    """Where a study and its files are, as a reader may give it to another command.

    Args:
        storage:
            A URL or a file; a password is shown as ``***``.
        artifacts:
            A folder or a bucket, if it is not the storage's own.
    """

    storage: str
    artifacts: str | None = None


def export_command(study_name: str, place: Place | None, *, widths_only: bool = False) -> str:
    """Return the lines that pack the model of a study and attach it to the study's page.

    Args:
        study_name:
            Name of the study.
        place:
            Storage and files that the lines name.
        widths_only:
            Whether to write the bit widths alone.
    """
    name = " ".join(study_name.split())  # a line break would end the block of the note
    what = ["--assignment-only"] if widths_only else ["--attach", "--out", "model.sgq"]
    words = ["sgquant", "export", name, *what]
    lines = []
    if place is not None and "***" in place.storage:
        # With its password, the URL would stay in the history of a shell.
        lines.append(f"# SGQUANT_STORAGE holds the URL: {place.storage}")
    elif place is not None:
        words += ["--storage", place.storage]
    if place is not None and place.artifacts is not None and not widths_only:
        words += ["--artifacts", place.artifacts]
    return "\n".join([*lines, shlex.join(words)])


def study_note(
    report: StudyReport,
    images: Mapping[str, str],
    *,
    place: Place | None = None,
    hint: str = "",
    has_plan: bool = True,
) -> str:
    """Return the result of a study: assignment, accuracy, memory, and how to get the model.

    Args:
        report:
            Report on the study.
        images:
            Title and address of each plot.
        place:
            Storage and files that the note names.
        hint:
            A sentence in the place of missing plots.
        has_plan:
            Whether the study has a plan, from which its models can be rebuilt.
    """
    held = ""
    if report.final is not None:
        held = " It **held** on fresh trainings." if report.final.holds else ""
        held = held or " It did **not** hold on fresh trainings."
    full = report.record.full_precision_accuracy
    if report.is_feasible:
        headline = (
            f"**{report.honest.saving:.1f} times smaller** than float32 with a drop of at most "
            f"{report.result.drop_bound:.2f} points ({report.record.confidence:.0%} sure): trial "
            f"{report.trial}.{held} Its validation accuracy is {report.accuracy:.2f} % (full "
            f"precision {full:.2f} %)."
        )
    else:
        headline = (
            f"**No trial is feasible yet.** The nearest is trial {report.trial}, "
            f"up to {report.result.drop_bound:.2f} points below full precision where "
            f"{report.record.max_drop:g} are allowed."
        )
    bits, summary = report.plain_tables()
    parts = [
        f"# {markdown_text(report.study_name)}",
        headline,
        "## Bits",
        markdown_table(bits),
        "## Accuracy and memory",
        markdown_table(summary),
        "## The packed model",
        *_how_to_export(report.study_name, place, has_plan),
    ]
    if images or hint:
        parts.append("## Plots")
    parts += [f"![{markdown_text(title)}]({address})" for title, address in images.items()]
    return "\n\n".join([*parts, *([hint] if hint else [])]) + "\n"


def _how_to_export(study_name: str, place: Place | None, has_plan: bool) -> list[str]:
    if has_plan:
        return [
            textwrap.indent(export_command(study_name, place), "    "),
            "writes it to a file and offers it here, below the attributes of the study "
            "(`--attach`).",
        ]
    return [
        '    sgquant_optuna.export_study(study, "model.sgq", objective=objective)',
        "writes it to a file, in the Python that made the study: its model is not in the "
        "database. The bit widths alone come from there:",
        textwrap.indent(export_command(study_name, place, widths_only=True), "    "),
    ]


def trial_note(
    record: StudyRecord, result: TrialResult, predicted: Mapping[str, float] | None
) -> str:
    """Return what one finished trial measured.

    Args:
        record:
            Record of its study.
        result:
            Result of the trial.
        predicted:
            Prediction of the sampler's cost model, if it made one.
    """
    limit = record.max_drop
    verdict = "feasible" if result.is_feasible(limit) else "**not feasible**"
    rows = [
        (
            f"drop, at most ({record.confidence:.0%})",
            f"{result.drop_bound:.2f} points, limit {limit:g}: {verdict}",
        ),
        ("drop, most probable", f"{result.estimated_drop:.2f} points"),
        ("predictions that change", f"{result.flips:.2f} %"),
        (
            "validation accuracy",
            f"{result.accuracy:.2f} % of {record.full_precision_accuracy:.2f} %",
        ),
        (
            "memory, honest",
            f"{megabytes(result.memory_bytes)}, {result.saving:.1f}x smaller",
        ),
        (
            "memory, paper",
            f"{megabytes(result.paper_memory_bytes)}, {result.paper_saving:.1f}x smaller",
        ),
    ]
    for key, offset in zip(PREDICTED_DROP, (limit, 0.0), strict=True):
        if predicted and key in predicted:
            rows.append(
                (
                    "predicted bound of the drop" if offset else "predicted drop",
                    f"{predicted[key] + offset:.2f} points",
                )
            )
            break
    # Built by hand: the table of rich is too slow for thousands of trials.
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"| measured | |\n| --- | --- |\n{lines}\n"
