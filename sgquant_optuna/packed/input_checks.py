"""Whether the packed places and codes of an input lead somewhere, looked at a block at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed.integers import read_integer_run
from sgquant_optuna.quantization.layout import bits_for
from sgquant_optuna.quantization.packing import unpack

_BLOCK = 1 << 16
"""Integers that are unpacked at one time."""


def check_places(packed: Tensor, crow: Tensor, num_columns: int) -> None:
    """Check that the columns of non-zeros exist and rise within each row.

    A product reads where a column leads, and a column that stands there twice would count twice
    in a product and once in a row.

    Args:
        packed:
            Column of each non-zero, packed.
        crow:
            Start of each row among them, ``[R + 1]``.
        num_columns:
            Columns F.

    Raises:
        PackingError:
            If one does not.
    """
    last, bits = -1, bits_for(max(0, num_columns - 1))
    for start, stop in _runs(int(crow[-1])):
        column = read_integer_run(packed, int(crow[-1]), bits, start, stop)
        place = torch.arange(start, stop, device=crow.device)
        row = torch.searchsorted(crow, place, right=True) - 1
        at = row * num_columns + column
        rises = int(at[0]) > last and not bool((at.diff() <= 0).any())
        if int(column.max()) >= num_columns or not rises:
            raise PackingError(
                f"columns of the input: expected rising ones below {num_columns} in each row"
            )
        last = int(at[-1])


def check_codes(
    packed: Tensor, num_values: int, bits: int, num_columns: int, num_nonzeros: int | None
) -> None:
    """Check that every code has a value in the codebook.

    Args:
        packed:
            Codes, packed.
        num_values:
            Values of the codebook.
        bits:
            Bits of a code.
        num_columns:
            Columns F.
        num_nonzeros:
            How many codes a sparse store has; ``None`` for rows of codes.

    Raises:
        PackingError:
            If one has none.
    """
    blocks: Iterator[Tensor]
    if num_nonzeros is None:
        rows = packed.split(max(1, _BLOCK // max(1, num_columns)))
        blocks = (unpack(block, num_columns, bits) for block in rows)
    else:
        blocks = (
            read_integer_run(packed, num_nonzeros, bits, *run) for run in _runs(num_nonzeros)
        )
    for codes in blocks:
        if codes.numel() and int(codes.max()) >= num_values:
            raise PackingError(
                f"codes of the input: expected some below {num_values}, got {int(codes.max())}"
            )


def _runs(count: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK))
