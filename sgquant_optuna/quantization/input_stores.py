"""Bytes of the graph's own features in every store that can hold them, by arithmetic alone.

The features that a layer computes are dense and change in each epoch. The input is known: it may
be binary, have few distinct values or be mostly zero. Then a store of the positions of its
non-zeros, or of a code for each distinct value, takes fewer bytes than packed rows and is often
lossless. Binary rows that are divided by their sums have one value each, which needs no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import index
from typing import Any, Literal, get_args

from sgquant_optuna.quantization.layout import bits_for, integers_nbytes, packed_nbytes
from sgquant_optuna.quantization.sites import FULL_PRECISION

RANGE_BYTES = 8
"""One scale and one zero point, float32 each."""

RowValue = Literal["1/count", "own"]
"""Origin of the value that all non-zeros of a row have: their number, or the row alone."""

MAX_VALUES = 256
"""Largest number of values in a codebook; more need codes of more than 8 bits."""


@dataclass(frozen=True)
class InputContent:
    """Contents of the rows of one degree bucket of the input.

    Args:
        num_nonzeros:
            Number of values that are not zero.
        max_row_nonzeros:
            Largest number of non-zeros in one row.
        num_values:
            Number of distinct non-zero values; ``None`` if there are more than 256.
        keeps_zero:
            Whether every candidate width maps zero to zero, so that only non-zeros are stored.
        lossless:
            Candidate widths that change no value.
        row_value:
            Origin of the value that all non-zeros of a row have: ``"1/count"`` if it is one
            divided by their number in every row, else ``"own"``; ``None`` if a row has several.
    """

    num_nonzeros: int
    max_row_nonzeros: int
    num_values: int | None
    keeps_zero: bool
    lossless: tuple[int, ...] = ()
    row_value: RowValue | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> InputContent:
        """Read the dictionary that ``dataclasses.asdict`` returned.

        Raises:
            TypeError:
                If a number is not whole.
            ValueError:
                If it is negative, or an origin is unknown.
        """
        values = content["num_values"]
        if content["row_value"] not in (None, *get_args(RowValue)):
            raise ValueError(f"row_value: expected a known one, got {content['row_value']!r:.60}")
        return cls(
            num_nonzeros=whole(content["num_nonzeros"]),
            max_row_nonzeros=whole(content["max_row_nonzeros"]),
            num_values=None if values is None else whole(values),
            keeps_zero=content["keeps_zero"] is True,
            lossless=tuple(map(whole, content["lossless"])),
            row_value=content["row_value"],
        )


def whole(number: Any) -> int:
    """Return a number of something, as a stored layout has it.

    Raises:
        TypeError:
            If it is not whole.
        ValueError:
            If it is negative, or no machine has so many.
    """
    count = index(number)
    if not 0 <= count < 2**63:
        raise ValueError(f"expected a number from 0 to 2**63, got {count}")
    return count


def packed_rows_nbytes(
    num_rows: int, num_columns: int, bit_width: int, num_ranges: int = 1
) -> int:
    """Return the bytes of dense rows of ``bit_width`` bits (32: float32) with their ranges.

    Args:
        num_rows:
            Number of rows.
        num_columns:
            Number of values in a row.
        bit_width:
            Bits of each value: 1-8, 16 or 32.
        num_ranges:
            Number of pairs of scale and zero point.

    Raises:
        ValueError:
            If the width is not 1-8, 16 or 32.
    """
    if bit_width == FULL_PRECISION:
        return 4 * num_rows * num_columns
    return packed_nbytes(num_rows, num_columns, bit_width) + RANGE_BYTES * num_ranges


def input_stores(
    num_rows: int, num_columns: int, bit_width: int, num_ranges: int, content: InputContent
) -> dict[str, int]:
    """Return the bytes of every store that can hold the input at a bit width.

    - ``rows``: packed dense rows; float32 at 32 bits.
    - ``codebook``: the distinct values, and the index of one for each value of the matrix.
    - ``sparse``: the number of non-zeros of each row, and column and code of each non-zero.
    - ``sparse codebook``: as ``sparse``, with the distinct non-zero values and the index of one
      for each non-zero instead of its code; no index where all non-zeros are equal.

    Where all non-zeros of a row are equal and the width changes no value, one of these too:

    - ``sparse 1/count``: number of non-zeros and their columns. The value follows from the number.
    - ``sparse row codebook``: as ``sparse codebook``, with an index for each row.
    - ``sparse row values``: as ``sparse``, with a float32 value for each row instead of codes.

    Args:
        num_rows:
            Number of rows in the bucket.
        num_columns:
            Input features F.
        bit_width:
            Bits of each code: 1-8, 16 or 32.
        num_ranges:
            Number of pairs of scale and zero point.
        content:
            Contents of the rows.

    Returns:
        Bytes of each store, by its name.

    Example:
        Cora, binary, in one bucket: 2708 rows of 1433 columns, 49216 non-zeros, at most 30 in a
        row. A column number takes 11 bits, a count 5:

        >>> cora = InputContent(49216, 30, 1, keeps_zero=True)
        >>> input_stores(2708, 1433, 1, 1, cora)
        {'rows': 487448, 'codebook': 487448, 'sparse': 75525, 'sparse codebook': 69369}

        Each row divided by its sum, at full precision:

        >>> cora = InputContent(49216, 30, 29, keeps_zero=True, row_value="1/count")
        >>> input_stores(2708, 1433, 32, 1, cora)["sparse 1/count"]
        69365
    """
    is_full = bit_width == FULL_PRECISION
    sizes = {"rows": packed_rows_nbytes(num_rows, num_columns, bit_width, num_ranges)}
    # A value must have one dequantized value in all rows and columns.
    has_codebook = content.num_values is not None and (
        is_full or num_ranges == 1 or bit_width in content.lossless
    )
    if has_codebook:
        assert content.num_values is not None
        values = content.num_values + (content.num_nonzeros < num_rows * num_columns)
        bits = max(1, bits_for(values - 1))
        sizes["codebook"] = packed_nbytes(num_rows, num_columns, bits) + 4 * values
    if content.keeps_zero or is_full:
        positions = integers_nbytes(num_rows, bits_for(content.max_row_nonzeros))
        positions += integers_nbytes(content.num_nonzeros, bits_for(max(0, num_columns - 1)))
        codes = integers_nbytes(content.num_nonzeros, bit_width)
        sizes["sparse"] = positions + codes + (0 if is_full else RANGE_BYTES * num_ranges)
        if has_codebook:
            assert content.num_values is not None
            bits = bits_for(max(0, content.num_values - 1))
            codes = integers_nbytes(content.num_nonzeros, bits) + 4 * content.num_values
            sizes["sparse codebook"] = positions + codes
        if content.row_value is not None and (is_full or bit_width in content.lossless):
            sizes |= _row_value_stores(num_rows, positions, content)
    return sizes


def _row_value_stores(num_rows: int, positions: int, content: InputContent) -> dict[str, int]:
    """Return the bytes of the stores of rows of one value, with those of their positions."""
    if content.row_value == "1/count":
        return {"sparse 1/count": positions}
    sizes = {"sparse row values": positions + 4 * num_rows}
    if content.num_values is not None:
        codes = integers_nbytes(num_rows, bits_for(max(0, content.num_values - 1)))
        sizes["sparse row codebook"] = positions + codes + 4 * content.num_values
    return sizes
