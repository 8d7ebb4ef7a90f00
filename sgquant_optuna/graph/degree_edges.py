"""Degree edges: the degrees at which the degree buckets begin. Imports no torch."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import SupportsIndex

DEFAULT_DEGREE_EDGES = (4, 8, 16)
"""Edges of the buckets [0, 4), [4, 8), [8, 16) and [16, inf)."""

DEFAULT_NUM_BUCKETS = 4
"""Number of buckets in a search; they are of about equal size, so that each has many nodes."""

_MOST = 2**63 - 1  # degrees are int64


def check_degree_edges(edges: Sequence[int]) -> tuple[int, ...]:
    """Return the edges as a tuple if they are positive and in rising order.

    Raises:
        ValueError:
            If they are not positive integers in rising order.
    """
    if isinstance(edges, Iterable) and not isinstance(edges, str | bytes):
        checked = tuple(map(_whole, edges))
        known = [edge for edge in checked if edge is not None and 1 <= edge <= _MOST]
        if len(known) == len(checked) and known == sorted(set(known)):
            return tuple(known)
    raise ValueError(
        f"degree edges: expected positive integers in rising order such as "
        f"{DEFAULT_DEGREE_EDGES}, got {_shown(edges):.60}"
    )


def _whole(edge: object) -> int | None:
    """Return an integer, also of NumPy or torch; a text, 4.5 and true are none."""
    if isinstance(edge, bool) or not isinstance(edge, SupportsIndex):
        return None
    try:
        return operator.index(edge)
    except TypeError:  # a tensor of other numbers
        return None


def _shown(edges: object) -> str:
    return repr(tuple(edges) if isinstance(edges, list | tuple) else edges)


def bucket_labels(edges: Sequence[int]) -> list[str]:
    """Return the degrees of each bucket as text.

    Example:
        >>> bucket_labels((4, 8, 16))
        ['0-3', '4-7', '8-15', '16+']
    """
    lows = [0, *edges]
    highs = [*edges, None]
    return [
        f"{low}+" if high is None else (f"{low}" if high == low + 1 else f"{low}-{high - 1}")
        for low, high in zip(lows, highs, strict=True)
    ]
