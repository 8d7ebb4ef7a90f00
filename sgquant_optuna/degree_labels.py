"""Names of degree buckets for people, without torch."""

from __future__ import annotations

from collections.abc import Sequence


def bucket_labels(edges: Sequence[int]) -> list[str]:
    """Name the degrees of each bucket, for instance ``['0-3', '4-7', '8-15', '16+']``."""
    lows = [0, *edges]
    highs = [*edges, None]
    return [
        f"{low}+" if high is None else (f"{low}" if high == low + 1 else f"{low}-{high - 1}")
        for low, high in zip(lows, highs, strict=True)
    ]
