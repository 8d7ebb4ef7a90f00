"""The tables of a report as plain texts, Markdown or HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table


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


def markdown_table(table: PlainTable) -> str:
    """Return a table in Markdown."""
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join(_markdown_line(line, escape=i != 1) for i, line in enumerate(lines))


def markdown_text(text: str) -> str:
    """Return a text that Markdown shows as it is, in one line."""
    plain = " ".join(text.split())
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#!~$])", r"\\\1", plain)


def html_table(table: PlainTable) -> str:
    """Return a table in HTML; its texts are shown as they are."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = [line("th", table.header), *(line("td", row) for row in table.rows)]
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def _markdown_line(cells: Sequence[str], *, escape: bool) -> str:
    return f"| {' | '.join(markdown_text(c) if escape else c for c in cells)} |"
