"""Bytes of the graph's own features in every store that could hold them, by arithmetic alone.

Features that a layer computed are dense and new in each epoch, but the input is known: it may be
binary, take few values or be mostly zero. Then a store that keeps the places of its non-zeros, or
a code for each of its values, takes fewer bytes than packed rows, and often loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgquant_optuna.quantization.layout import bits_for, integers_nbytes, packed_nbytes
from sgquant_optuna.quantization.sites import FULL_PRECISION

RANGE_BYTES = 8
"""One scale and one zero point, float32 each."""

MAX_VALUES = 256
"""A codebook holds at most that many values: above 8 bits float32 is near."""


@dataclass(frozen=True)
class InputContent:
    """What the rows of one degree bucket of the input hold.

    Args:
        num_nonzeros:
            Values that are not zero.
        max_row_nonzeros:
            Most of them in one row.
        num_values:
            How many different values the non-zeros take; ``None`` if more than 256.
        keeps_zero:
            Whether every candidate width maps zero to zero, so that only non-zeros need storing.
        lossless:
            Candidate widths that change no value.
    """

    num_nonzeros: int
    max_row_nonzeros: int
    num_values: int | None
    keeps_zero: bool
    lossless: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> InputContent:
        """Read what ``dataclasses.asdict`` wrote."""
        return cls(**{**content, "lossless": tuple(content["lossless"])})


def packed_rows_nbytes(
    num_rows: int, num_columns: int, bit_width: int, num_ranges: int = 1
) -> int:
    """Bytes of dense rows of ``bit_width`` bits (32: float32) with their ranges."""
    if bit_width == FULL_PRECISION:
        return 4 * num_rows * num_columns
    return packed_nbytes(num_rows, num_columns, bit_width) + RANGE_BYTES * num_ranges


def input_stores(
    num_rows: int, num_columns: int, bit_width: int, num_ranges: int, content: InputContent
) -> dict[str, int]:
    """Bytes of every store that can hold the input at a bit width.

    ``rows`` are packed dense rows (float32 at 32 bits); ``codebook`` keeps a code for every value;
    ``sparse`` keeps count of each row, column of each non-zero, and its code of ``bit_width``
    bits; ``sparse codebook`` keeps a code into the list of values instead, and nothing where all
    non-zeros are equal.

    Example:
        Cora, binary, in one bucket: 2708 rows of 1433 columns, 49216 non-zeros, 30 at most in a
        row. Columns take 11 bits and counts 5:

        >>> cora = InputContent(49216, 30, 1, keeps_zero=True)
        >>> input_stores(2708, 1433, 1, 1, cora)
        {'rows': 487448, 'codebook': 487448, 'sparse': 75525, 'sparse codebook': 69369}
    """
    is_full = bit_width == FULL_PRECISION
    sizes = {"rows": packed_rows_nbytes(num_rows, num_columns, bit_width, num_ranges)}
    # A value must decode to the same wherever it stands.
    has_codebook = content.num_values is not None and (
        is_full or num_ranges == 1 or bit_width in content.lossless
    )
    if has_codebook:
        assert content.num_values is not None
        values = content.num_values + (content.num_nonzeros < num_rows * num_columns)
        bits = max(1, bits_for(values - 1))
        sizes["codebook"] = packed_nbytes(num_rows, num_columns, bits) + 4 * values
    if content.keeps_zero or is_full:
        places = integers_nbytes(num_rows, bits_for(content.max_row_nonzeros))
        places += integers_nbytes(content.num_nonzeros, bits_for(max(0, num_columns - 1)))
        codes = integers_nbytes(content.num_nonzeros, bit_width)
        sizes["sparse"] = places + codes + (0 if is_full else RANGE_BYTES * num_ranges)
        if has_codebook:
            assert content.num_values is not None
            bits = bits_for(max(0, content.num_values - 1))
            codes = integers_nbytes(content.num_nonzeros, bits) + 4 * content.num_values
            sizes["sparse codebook"] = places + codes
    return sizes
