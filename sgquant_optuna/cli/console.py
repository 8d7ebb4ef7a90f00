"""The console of rich for all commands: colours are its own, what it writes in them is text."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

from sgquant_optuna.cli.terminal import visible


class _VisibleConsole(Console):
    def render(self, *arguments: Any, **options: Any) -> Iterable[Segment]:
        for segment in super().render(*arguments, **options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)  # so that columns are wide enough


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console on which control characters are visible.

    Args:
        stderr:
            Whether it writes to the standard error.
        quiet:
            Whether it writes nothing.
    """
    file = sys.stderr if stderr else sys.stdout
    return _VisibleConsole(file=getattr(file, "rich_proxied_file", file), quiet=quiet)


def plain(text: str) -> Text:
    """Return a text for a table of rich: neither markup nor controls work in it."""
    return Text(visible(text))
