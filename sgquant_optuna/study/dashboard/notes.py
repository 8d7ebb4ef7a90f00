"""The notes of a study and of its trials, in Markdown."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from sgquant_optuna.study.byte_sizes import megabytes
from sgquant_optuna.study.measurements import predicted_drop
from sgquant_optuna.study.plain_tables import markdown_table, markdown_text
from sgquant_optuna.study.record import StudyRecord
from sgquant_optuna.study.report import StudyReport
from sgquant_optuna.study.study_reference import StudyReference
from sgquant_optuna.study.trial_result import TrialResult


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


def export_command(
    study_name: str,
    place: Place | None,
    *,
    widths_only: bool = False,
    own: StudyReference | None = None,
) -> str:
    """Return the lines that pack the model of a study and attach it to the study's page.

    Args:
        study_name:
            Name of the study.
        place:
            Storage and files that the lines name.
        widths_only:
            Whether to write the bit widths alone.
        own:
            Reference of the study's own models, whose file the reader has to name.
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
    if own is not None and not widths_only:
        # Not the path that the database has: a reader would run what another person named.
        lines.append(f"# {own.placeholder}: your copy of the file with SHA-256 {own.sha256[:16]}")
        words += ["--study", own.placeholder]
    return "\n".join([*lines, shlex.join(words)])


def study_note(
    report: StudyReport,
    images: Mapping[str, str],
    *,
    place: Place | None = None,
    hint: str = "",
    has_plan: bool = True,
    own: StudyReference | None = None,
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
        own:
            Reference of the study's own models.
    """
    bits, summary = report.plain_tables()
    name = report.record.metric.name
    parts = [
        f"# {markdown_text(report.study_name)}",
        _headline(report),
        "## Bits",
        markdown_table(bits),
        f"## {markdown_text(name[:1].upper() + name[1:])} and memory",
        markdown_table(summary),
        *([report.certainty] if report.certainty else []),
        "## The packed model",
        *_how_to_export(report.study_name, place, has_plan, own),
    ]
    if images or hint:
        parts.append("## Plots")
    parts += [f"![{markdown_text(title)}]({address})" for title, address in images.items()]
    return "\n\n".join([*parts, *([hint] if hint else [])]) + "\n"


def _headline(report: StudyReport) -> str:
    budget, metric, final = report.record.budget_bytes, report.record.metric, report.final
    full = metric.value(report.record.full_precision_accuracy)
    if budget is not None and report.is_feasible:
        again = (
            ""
            if final is None
            else f" On fresh trainings it is {metric.digits(final.estimated_drop)}."
        )
        return (
            f"**{metric.drop(report.result.estimated_drop)}** {metric.worse_side} full precision "
            f"(validation {metric.name} {full}) in {megabytes(report.result.memory_bytes)}, of a "
            f"budget of {megabytes(budget)}: trial {report.trial}.{again}"
        )
    if report.is_feasible:
        held = ""
        if final is not None:
            held = f" It {'**held**' if final.holds else 'did **not** hold'} on fresh trainings."
        return (
            f"**{report.honest.saving:.1f} times smaller** than float32 with a drop of at most "
            f"{metric.drop(report.result.drop_bound)} ({report.record.confidence:.0%} sure): "
            f"trial {report.trial}.{held} Its validation {metric.name} is "
            f"{metric.value(report.accuracy)} (full precision {full})."
        )
    if budget is not None:
        missed = report.record.limit.describe_violation(report.result)
    else:
        missed = (
            f"up to {metric.drop(report.result.drop_bound)} {metric.worse_side} full precision "
            f"where {report.record.limit.describe_drop()} are allowed"
        )
    return f"**No trial is feasible yet.** The nearest is trial {report.trial}, {missed}."


def _how_to_export(
    study_name: str, place: Place | None, has_plan: bool, own: StudyReference | None
) -> list[str]:
    if has_plan:
        return [
            textwrap.indent(export_command(study_name, place, own=own), "    "),
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
    verdict = "feasible" if record.limit.is_feasible(result) else "**not feasible**"
    if record.budget_bytes is not None:
        of_drop, of_memory = "", f", budget {megabytes(record.budget_bytes)}: {verdict}"
    else:
        of_drop, of_memory = f", limit {record.limit.describe_drop()}: {verdict}", ""
    metric = record.metric
    bound = f"{metric.drop(result.drop_bound)}{of_drop}"
    rows = [
        (f"drop, at most ({record.confidence:.0%})", bound),
        ("drop, most probable", metric.drop(result.estimated_drop)),
        ("predictions that change", f"{result.flips:.2f} %"),
        (
            f"validation {metric.name}",
            f"{metric.value(result.accuracy)} of {metric.value(record.full_precision_accuracy)}",
        ),
        (
            "memory, honest",
            f"{megabytes(result.memory_bytes)}, {result.saving:.1f}x smaller{of_memory}",
        ),
        (
            "memory, paper",
            f"{megabytes(result.paper_memory_bytes)}, {result.paper_saving:.1f}x smaller",
        ),
    ]
    expected = predicted_drop(record, predicted or {})
    if expected is not None:
        rows.append(("predicted drop", metric.drop(expected[0])))
    # Built by hand: the table of rich is too slow for thousands of trials.
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"| measured | |\n| --- | --- |\n{lines}\n"
