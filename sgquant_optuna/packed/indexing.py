"""Rows that an index asks for, so that no others are unpacked; places of rows in buckets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)


def row_numbers(index: object, num_rows: int) -> Tensor | None:
    """Return the rows that an index along the first dimension names.

    Args:
        index:
            Slice, whole number, or list, range, array or tensor of numbers or of N truth values.
        num_rows:
            Number of rows N.

    Returns:
        Numbers from 0 to N - 1, int64, in the shape of the index; ``None`` for another index.

    Raises:
        IndexError:
            If a number is not one of ``-N ... N - 1``, or there are not N truth values.
    """
    if isinstance(index, slice):
        return torch.arange(num_rows)[index]
    found = _as_tensor(index)
    if found is None:
        return None
    if found.dtype == torch.bool:
        if found.shape != (num_rows,):
            raise IndexError(f"mask of rows: expected [{num_rows}], got {list(found.shape)}")
        return found.nonzero()[:, 0]
    low, high = (int(found.min()), int(found.max())) if found.numel() else (0, -1)
    if low < -num_rows or high >= num_rows:
        raise IndexError(f"rows: expected {-num_rows} to {num_rows - 1}, got {low} to {high}")
    found = found.long()
    return torch.where(found < 0, found + num_rows, found) if low < 0 else found


def split_index(index: object, num_rows: int) -> tuple[Tensor, tuple[Any, ...] | None] | None:
    """Split an index into rows and an index of those rows alone.

    Args:
        index:
            Index as it stands in brackets.
        num_rows:
            Number of rows N.

    Returns:
        Rows, ``[n]``, and the index of their features ``[n, F]`` (``None`` where all are wanted);
        ``None`` for both where the index does not begin with rows.

    Raises:
        IndexError:
            If there is no such row.
    """
    first, *rest = index if isinstance(index, tuple) and index else (index,)
    rows = row_numbers(first, num_rows)
    if rows is None:
        return None
    if rows.dim() == 1 and not rest:
        return rows, None
    place = slice(None) if isinstance(first, slice) else torch.arange(rows.numel()).view_as(rows)
    return rows.reshape(-1), (place, *rest)


def places_in_buckets(bucket: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the place of each node among the nodes of its bucket, in node order.

    Args:
        bucket:
            Degree bucket of each node, ``[N]``.
        counts:
            Number of nodes of each bucket.

    Returns:
        Places, ``[N]`` int32.
    """
    places = torch.empty(len(bucket), dtype=torch.int32, device=bucket.device)
    for number, count in enumerate(counts):
        places[bucket == number] = torch.arange(count, dtype=torch.int32, device=bucket.device)
    return places


def _as_tensor(index: object) -> Tensor | None:
    if isinstance(index, bool | np.bool_):  # adds a dimension
        return None
    if isinstance(index, list | range):
        kinds = {type(entry) for entry in index}
        if not (kinds <= {int} or kinds == {bool}):
            return None
        return torch.tensor(list(index), dtype=torch.bool if kinds == {bool} else torch.long)
    if isinstance(index, int | np.integer | np.ndarray):
        index = torch.as_tensor(np.asarray(index))
    if not isinstance(index, Tensor):
        return None
    is_mask = index.dtype == torch.bool and index.dim() == 1
    return index if is_mask or index.dtype in _INTEGERS else None
