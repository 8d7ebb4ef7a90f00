"""Rows whose non-zeros are all equal, as those of binary features divided by their sums."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sgquant_optuna.quantization.input_stores import RowValue

_BLOCK = 1 << 20
"""Values that are compared at one time: real features mostly have several in the first rows."""


def row_values(x: Tensor) -> tuple[RowValue, Tensor] | None:
    """Return the one value that the non-zeros of each row have.

    Args:
        x:
            Rows, ``[R, F]``.

    Returns:
        Origin of the values, and the values, ``[R]``, 0 for a row without non-zeros; ``None`` if
        a row has two.

    Example:
        >>> row_values(torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
        ('1/count', tensor([0.5000, 1.0000, 0.0000]))
    """
    parts = []
    for block in x.split(max(1, _BLOCK // max(1, x.shape[1]))):
        low, high = F.pad(block, (0, 1)).aminmax(dim=1)  # one column more: there may be none
        value = torch.where(high > 0, high, low)
        if not bool(((block == value[:, None]) | (block == 0)).all()):
            return None
        parts.append(value)
    values = torch.cat(parts)
    expected = reciprocals(torch.count_nonzero(x, dim=1))
    follow = bool(((values == expected) | (values == 0)).all())
    return "1/count" if follow else "own", values


def reciprocals(counts: Tensor) -> Tensor:
    """Return one divided by each count, float32 as IEEE 754 rounds it; infinity for 0."""
    return torch.ones_like(counts, dtype=torch.float32) / counts
