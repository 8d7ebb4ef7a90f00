"""Places of the non-zeros of a matrix as coded gaps, and how many bits these take.

A few columns of a bag of words are in most rows, and most columns in few. So the columns are put
into classes by their frequency, each at most half as frequent as the one before it, and taken in
the order of their classes. A row is the gaps between its non-zeros in this order. A gap of g
columns takes ``(g >> k) + 1 + k`` bits with the parameter k of the class that it begins in, which
is where the gap is short that it may be long. Only the class of a column is stored, not its place.

Reference:
    Rice and Plaunt (1971), "Adaptive Variable-Length Coding for Efficient Compression of
    Spacecraft Television Data".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sgquant_optuna.quantization.layout import NUM_CLASSES, PARAMETER_BITS, bits_for

ESCAPE = 24
"""Ones after which a gap is written as it is, with the bits of a column: no code is longer."""
_LARGEST = (1 << PARAMETER_BITS) - 1  # parameter
_BLOCK = 1 << 22  # values that are looked at together


@dataclass(frozen=True)
class Gaps:
    """The gaps of some rows by their code, in the order in which they are written.

    Args:
        row:
            Row of each gap, ``[nnz]`` int64, rising.
        gap:
            Columns between a non-zero and the one before it, ``[nnz]`` int64.
        parameter:
            Parameter k of each, ``[nnz]`` int64.
        length:
            Bits of each, ``[nnz]`` int64.
    """

    row: Tensor
    gap: Tensor
    parameter: Tensor
    length: Tensor


@dataclass(frozen=True)
class GapCode:
    """How the gaps of one matrix are coded.

    Args:
        classes:
            Class of each column, ``[F]`` uint8, 0 for the most frequent ones.
        parameters:
            Parameter k of each class, ``[8]`` int64.
        num_bits:
            Bits of all gaps.
    """

    classes: Tensor
    parameters: Tensor
    num_bits: int

    @classmethod
    def of(cls, x: Tensor) -> GapCode:
        """Choose the code of the fewest bits for the non-zeros of a matrix, ``[R, F]``."""
        num_columns = x.shape[1]
        frequency = torch.zeros(num_columns, dtype=torch.long, device=x.device)
        for block in blocks(x):
            frequency += (block != 0).sum(dim=0)
        classes = column_classes(frequency)
        tried = torch.arange(1 + min(_LARGEST, raw_bits(num_columns)), device=x.device)
        sums = torch.zeros(NUM_CLASSES, len(tried), dtype=torch.long, device=x.device)
        for block in blocks(x):
            _, gap, begins_in = _gaps(block, classes)
            for k in tried.tolist():
                lengths = _lengths(gap, k, raw_bits(num_columns))
                sums[:, k].index_add_(0, begins_in, lengths)
        # Of equal sums the smallest parameter, whatever the device does with ties.
        best = (sums * len(tried) + tried).min(dim=1).values
        return cls(classes, best % len(tried), int((best // len(tried)).sum()))

    def gaps(self, block: Tensor) -> Gaps:
        """Return the gaps of some rows, ``[r, F]``."""
        row, gap, begins_in = _gaps(block, self.classes)
        parameter = self.parameters[begins_in]
        return Gaps(row, gap, parameter, _lengths(gap, parameter, raw_bits(block.shape[1])))


def blocks(x: Tensor) -> Iterator[Tensor]:
    """Cut a matrix into rows of which a few matrices of int64 may be made."""
    yield from x.split(max(1, _BLOCK // max(1, x.shape[1])))


def raw_bits(num_columns: int) -> int:
    """Return the bits of a gap that is written as it is."""
    return bits_for(max(0, num_columns - 1))


def column_order(classes: Tensor) -> Tensor:
    """Return the columns in the order in which gaps count them, ``[F]`` int64."""
    return classes.argsort(stable=True)


def column_classes(frequency: Tensor) -> Tensor:
    """Return the class of each column, ``[F]`` uint8, by how often it is not zero, ``[F]`` int64.

    Class c holds the columns that are at most ``1 / 2**c`` as frequent as the most frequent one,
    and the last class all that are rarer.

    Example:
        >>> column_classes(torch.tensor([8, 5, 4, 0])).tolist()
        [0, 0, 1, 7]
    """
    most = int(frequency.max()) if len(frequency) else 0
    classes = torch.zeros(len(frequency), dtype=torch.uint8, device=frequency.device)
    for step in range(1, NUM_CLASSES):
        classes += (frequency << step) <= most
    return classes


def _gaps(block: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, gap, and class that the gap begins in, of each non-zero, in order."""
    num_columns = block.shape[1]
    order = column_order(classes)
    row, place = (block != 0)[:, order].nonzero().unbind(dim=1)
    before = torch.full_like(place, -1)
    follows = row[1:] == row[:-1]
    before[1:][follows] = place[:-1][follows]
    begins_in = classes[order].long()[(before + 1).clamp(max=max(0, num_columns - 1))]
    return row, place - before - 1, begins_in


def _lengths(gap: Tensor, parameter: Tensor | int, raw_bits: int) -> Tensor:
    ones = gap >> parameter
    return torch.where(ones < ESCAPE, ones + 1 + parameter, ESCAPE + raw_bits)
