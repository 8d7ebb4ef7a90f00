"""A report as JSON, CSV, Markdown or HTML, for files and other programs."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import optuna

from sgquant_optuna.quantization.memory import Memory
from sgquant_optuna.study.plain_tables import markdown_table, markdown_text
from sgquant_optuna.study.report import StudyReport
from sgquant_optuna.study.rows import trial_rows
from sgquant_optuna.study.trial_result import TrialResult

_COLUMNS = (
    *("memory_bytes", "saving", "accuracy", "accuracy_drop", "flips", "estimated_drop"),
    *("drop_bound", "trainings", "average_bits", "seconds"),
)


def to_json(report: StudyReport) -> str:
    """Return everything that the tables show, and full numbers, as one JSON object."""
    sizes = report.record.layout.sizes
    final = report.final
    described = {
        "study": report.study_name,
        "mode": report.record.mode,
        "metric": report.record.metric.to_dict(),
        "trial": report.trial,
        "is_feasible": report.is_feasible,
        **report.record.limit.to_json(),
        "validation": {
            "full_precision": report.record.full_precision_accuracy,
            "quantized": report.accuracy,
            "drop": report.accuracy_drop,
        },
        "promise": {
            "confidence": report.record.confidence,
            "estimated_drop": report.result.estimated_drop,
            "drop_bound": report.result.drop_bound,
            "flips": report.result.flips,
            "certifiable_flips": report.certifiable_flips,
        },
        "other_limits": [asdict(other) for other in report.other_limits],
        "final": None
        if final is None
        else {
            **asdict(final),
            "test_drop": final.test_drop,
        },
        "memory": {
            "honest": _memory(report.honest),
            "exact_input": _memory(report.exact_input),
            "paper": _memory(report.paper),
        },
        "bit_widths": report.bits.to_dict(),
        "values": {str(site): sizes[site].num_elements for site in report.bits},
        "degree_edges": list(report.record.degree_edges),
        "notes": list(report.record.layout.notes),
        "trials": {"finished": report.num_measured, "started": report.num_trials},
    }
    return json.dumps(described, indent=2) + "\n"


def to_csv(study: optuna.Study, report: StudyReport) -> str:
    """Return all finished trials, one a line: what each measured, and the width of every site."""
    sites = [str(site) for site in report.bits]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["trial", "is_chosen", "is_feasible", *_COLUMNS, *sites])
    for row in trial_rows(study, TrialResult):
        result = row.result
        if result is None:
            continue
        widths = result.bit_widths.to_dict()
        writer.writerow(
            [
                row.number,
                int(row.number == report.trial),
                int(report.record.limit.is_feasible(result)),
                *(getattr(result, name) for name in _COLUMNS),
                *(widths.get(site, "") for site in sites),
            ]
        )
    return file.getvalue()


def to_markdown(report: StudyReport) -> str:
    """Return both tables in the Markdown of GitHub."""
    parts = [f"# {markdown_text(report.study_name)}", f"Bits of trial {report.trial}:"]
    parts += [markdown_table(table) for table in report.plain_tables()]
    parts += [report.certainty] if report.certainty else []
    return "\n\n".join(parts) + "\n"


def to_html(
    report: StudyReport, figures: Mapping[str, tuple[str, bytes]], *, note: str = ""
) -> str:
    """Return one page without any other file: the tables, then the plots.

    Args:
        report:
            Report on the study.
        figures:
            Title and PNG of each plot.
        note:
            A sentence below the plots, for instance why there are none.
    """
    name = html.escape(report.study_name)
    images = "\n".join(
        f'<figure><img alt="{html.escape(title)}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}"></figure>'
        for title, png in figures.values()
    )
    return _PAGE.format(
        name=name,
        trial=report.trial,
        tables=report.html_tables(),
        images=images,
        note=f"<p>{html.escape(note)}</p>" if note else "",
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; }}
body {{ max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ border-bottom: 1px solid #ccc; padding: .3rem .8rem; text-align: left; }}
figure {{ margin: 1.5rem 0; }}
img {{ max-width: 100%; }}
</style>
</head>
<body>
<h1>{name}</h1>
<p>Bits of trial {trial}</p>
{tables}
{images}
{note}
</body>
</html>
"""


def _memory(memory: Memory) -> dict[str, Any]:
    return {**asdict(memory), "saving": memory.saving, "average_bits": memory.average_bits}
