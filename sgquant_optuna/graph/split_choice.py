"""Which split of a graph is meant, in plain values: plans and command lines need no torch."""

from __future__ import annotations

from typing import Literal

Split = int | Literal["all"]
"""Number of a split from 0, or ``"all"``."""


def check_split(split: object, *, what: str = "split") -> None:
    """Check that this is the number of a split, or ``"all"``.

    Raises:
        ValueError:
            If it is not.
    """
    is_number = isinstance(split, int) and not isinstance(split, bool) and split >= 0
    if not is_number and split != "all":
        raise ValueError(f"{what}: expected the number of a split from 0, or 'all', got {split!r}")


def parse_split(text: str, *, what: str) -> Split:
    """Read ``"3"`` or ``"all"``.

    Raises:
        ValueError:
            If it is neither.
    """
    split = int(text) if text.isascii() and text.isdigit() else text
    check_split(split, what=what)
    return split  # type: ignore[return-value]
