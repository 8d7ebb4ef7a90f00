"""How rows and edges are cut into the blocks that are held as float32 at one time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_ROWS = 1024
"""Rows of a block."""
BLOCK_VALUES = 1 << 20
"""Float32 values of a block that is multiplied at once: 4 MiB, which stay in the cache.

Smaller ones fit a cache better, but the threads of MKL meet at the end of each, and on a busy
machine one of them is late."""


def cut(entries: slice, limit: int) -> list[slice]:
    """Cut entries into runs of at most ``limit``."""
    starts = range(entries.start, entries.stop, limit)
    return [slice(start, min(start + limit, entries.stop)) for start in starts]


def row_blocks(
    crow: Tensor, limit: int, most_rows: int | None = None
) -> Iterator[tuple[slice, slice]]:
    """Cut a CSR matrix into runs of whole rows with at most ``limit`` entries.

    A row that alone has more, a hub, is a run of its own: :func:`cut` divides it further.

    Args:
        crow:
            Start of each row among the entries, ``[R + 1]``.
        limit:
            Largest number of entries of a run.
        most_rows:
            Largest number of rows of a run, if there is one.

    Yields:
        Rows, and their entries.
    """
    row, last = 0, len(crow) - 1
    while row < last:
        low = int(crow[row])
        stop = int(torch.searchsorted(crow, low + limit, right=True)) - 1
        stop = min(max(stop, row + 1), last, row + (most_rows or last))
        yield slice(row, stop), slice(low, int(crow[stop]))
        row = stop
