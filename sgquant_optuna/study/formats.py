"""A report as JSON, CSV, Markdown or HTML, for files and other programs."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from rich.table import Table

from sgquant_optuna.quantization.memory import Memory
from sgquant_optuna.study.report import StudyReport
from sgquant_optuna.study.rows import trial_rows
from sgquant_optuna.study.trial_result import TrialResult

_COLUMNS = ("memory_bytes", "saving", "accuracy", "accuracy_drop", "average_bits", "seconds")


@dataclass(frozen=True)
class PlainTable:
    """A table as texts, without colours or borders."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, table: Table) -> PlainTable:
        """Read a table of rich."""
        columns = [[str(cell) for cell in column.cells] for column in table.columns]
        header = tuple(str(column.header) for column in table.columns)
        return cls(header, tuple(zip(*columns, strict=True)))


def to_json(report: StudyReport) -> str:
    """Return everything that the tables show, and full numbers, as one JSON object."""
    sizes = report.record.layout.sizes
    final = report.final
    described = {
        "study": report.study_name,
        "mode": report.record.mode,
        "trial": report.trial,
        "is_feasible": report.is_feasible,
        "max_drop": report.record.max_drop,
        "validation": {
            "full_precision": report.record.full_precision_accuracy,
            "quantized": report.accuracy,
            "drop": report.accuracy_drop,
        },
        "final": None
        if final is None
        else {
            **asdict(final),
            "test_drop": final.test_drop,
            "test_drop_interval": final.test_drop_interval,
        },
        "memory": {
            "honest": _memory(report.honest),
            "exact_input": _memory(report.exact_input),
            "paper": _memory(report.paper),
        },
        "bit_widths": report.bits.to_dict(),
        "values": {str(site): sizes[site].num_elements for site in report.bits},
        "degree_edges": list(report.record.degree_edges),
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
                int(result.is_feasible(report.record.max_drop)),
                *(getattr(result, name) for name in _COLUMNS),
                *(widths.get(site, "") for site in sites),
            ]
        )
    return file.getvalue()


def to_markdown(report: StudyReport) -> str:
    """Return both tables in the Markdown of GitHub."""
    parts = [f"# {markdown_text(report.study_name)}", f"Bits of trial {report.trial}:"]
    parts += [
        markdown_table(PlainTable.of(t)) for t in (report.bits_table(), report.summary_table())
    ]
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
        tables=_plain_html_tables(report),
        images=images,
        note=f"<p>{html.escape(note)}</p>" if note else "",
    )


def html_tables(report: StudyReport) -> str:
    """Return both tables under their title, as a part of somebody else's page."""
    return f"<p><b>{html.escape(report.title)}</b></p>\n{_plain_html_tables(report)}"


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


def markdown_table(table: PlainTable) -> str:
    """Return a table in Markdown."""
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join(_markdown_line(line, escape=i != 1) for i, line in enumerate(lines))


def markdown_text(text: str) -> str:
    """Return a text that Markdown shows as it is, in one line."""
    plain = " ".join(text.split())
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#!~$])", r"\\\1", plain)


def _markdown_line(cells: Sequence[str], *, escape: bool) -> str:
    return f"| {' | '.join(markdown_text(c) if escape else c for c in cells)} |"


def _plain_html_tables(report: StudyReport) -> str:
    tables = (report.bits_table(), report.summary_table())
    return "\n".join(_html_table(PlainTable.of(table)) for table in tables)


def _html_table(table: PlainTable) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = [line("th", table.header), *(line("td", row) for row in table.rows)]
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def _memory(memory: Memory) -> dict[str, Any]:
    return {**asdict(memory), "saving": memory.saving, "average_bits": memory.average_bits}
