"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

from typing import Annotated

import typer

Storage = Annotated[
    str | None,
    typer.Option(
        envvar="SGQUANT_STORAGE",
        show_default="storage/sgquant.db",
        help="URL of the study database, or a file for SQLite.",
    ),
]


def integers(text: str, *, what: str) -> tuple[int, ...]:
    """Read ``"1,2,4,8"``.

    Raises:
        ValueError:
            If a part is not a whole number.
    """
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{what}: expected numbers such as 1,2,4,8, got {text!r}") from None


def assignments(texts: list[str], *, what: str) -> dict[str, int]:
    """Read ``["conv1=8", "conv2/attention=4"]``.

    Raises:
        ValueError:
            If one is not of the form ``NAME=BITS``.
    """
    pairs = {}
    for text in texts:
        name, _, width = text.rpartition("=")
        if not name or not width.isdigit():
            raise ValueError(f"{what}: expected NAME=BITS such as conv1=8, got {text!r}")
        pairs[name] = int(width)
    return pairs
