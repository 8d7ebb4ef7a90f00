"""Degree edges: the degrees at which the degree buckets begin. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

DEFAULT_DEGREE_EDGES = (4, 8, 16)
"""Edges of the buckets [0, 4), [4, 8), [8, 16) and [16, inf)."""

DEFAULT_NUM_BUCKETS = 4
"""Number of buckets in a search; they are of about equal size, so that each has many nodes."""


def check_degree_edges(edges: Sequence[int]) -> tuple[int, ...]:
    """Return the edges as a tuple if they are positive and in rising order.

    Raises:
        ValueError:
            If they are not positive integers in rising order.
    """
    checked = tuple(int(edge) for edge in edges)
    if list(checked) != sorted(set(checked)) or any(edge < 1 for edge in checked):
        raise ValueError(
            f"degree edges: expected positive integers in rising order such as "
            f"{DEFAULT_DEGREE_EDGES}, got {tuple(edges)}"
        )
    return checked


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
