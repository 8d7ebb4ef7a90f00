"""Bytes of the graph's own features in every store that can hold them, by arithmetic alone.

The features that a layer computes are dense and change in each epoch. The input is known: it may
be binary, have few distinct values or be mostly zero. Then a store of the positions of its
non-zeros, or of a code for each distinct value, takes fewer bytes than packed rows and is often
lossless. Binary rows that are divided by their sums have one value each, which needs no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from operator import index
from typing import Any, Literal, get_args

from sgquant_optuna.quantization.layout import (
    bits_for,
    integers_nbytes,
    packed_nbytes,
    places_nbytes,
)
from sgquant_optuna.quantization.sites import FULL_PRECISION, check_bit_width

RANGE_BYTES = 8
"""One scale and one zero point, float32 each."""

RowValue = Literal["1/count", "own"]
"""Origin of the value that all non-zeros of a row have: their number, or the row alone."""

MAX_VALUES = 256
"""Largest number of values in a codebook; more need codes of more than 8 bits."""


@dataclass(frozen=True)
class SparseContent:
    """Values that a bit width leaves in the rows of a degree bucket.

    Args:
        num_nonzeros:
            Number of values that are not zero.
        max_row_nonzeros:
            Largest number of them in one row.
        num_values:
            Number of distinct non-zero values; ``None`` if there are more than 256.
        gap_bits:
            Bits of their places in coded gaps, as ``gap_codes.py`` counts them; ``None`` where
            most values are not zero, so that nobody stores places.
    """

    num_nonzeros: int
    max_row_nonzeros: int
    num_values: int | None
    gap_bits: int | None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> SparseContent:
        """Read the dictionary that ``dataclasses.asdict`` returned; errors as :func:`whole`."""
        values, gap_bits = content["num_values"], content["gap_bits"]
        return cls(
            num_nonzeros=whole(content["num_nonzeros"]),
            max_row_nonzeros=whole(content["max_row_nonzeros"]),
            num_values=None if values is None else whole(values),
            gap_bits=None if gap_bits is None else whole(gap_bits),
        )


@dataclass(frozen=True)
class InputContent:
    """Contents of the rows of one degree bucket of the input.

    Args:
        by_width:
            Contents by bit width; 32 for the values as they are. A width that is missing has
            neither few values nor many zeros.
        lossless:
            Candidate widths that change no value.
        row_value:
            Origin of the value that all non-zeros of a row have: ``"1/count"`` if it is one
            divided by their number in every row, else ``"own"``; ``None`` if a row has several.
    """

    by_width: Mapping[int, SparseContent]
    lossless: tuple[int, ...] = ()
    row_value: RowValue | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the content as a dictionary for JSON, whose keys are texts."""
        return {
            "by_width": {str(width): asdict(one) for width, one in self.by_width.items()},
            "lossless": list(self.lossless),
            "row_value": self.row_value,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> InputContent:
        """Read the dictionary that :meth:`to_dict` returned.

        Raises:
            TypeError:
                If a number is not whole.
            ValueError:
                If it is negative, or an origin is unknown.
        """
        if content["row_value"] not in (None, *get_args(RowValue)):
            raise ValueError(f"row_value: expected a known one, got {content['row_value']!r:.60}")
        return cls(
            by_width={
                check_bit_width(int(width), where="content of the input"): SparseContent.from_dict(
                    one
                )
                for width, one in content["by_width"].items()
            },
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
    - ``sparse``: the places of the values that are not zero, and a code for each.
    - ``sparse codebook``: these places, the distinct values, and the index of one for each place;
      no index where all are equal.

    Where all non-zeros of a row are equal and the width changes no value, one of these too:

    - ``sparse 1/count``: the places alone. The value follows from their number in the row.
    - ``sparse row codebook``: as ``sparse codebook``, with an index for each row.
    - ``sparse row values``: as ``sparse``, with a float32 value for each row instead of codes.

    Places are those of the values that the width leaves: a value that is rounded to zero takes
    nothing. They are stored as gaps (:func:`.places_nbytes`).

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
        row, whose gaps take 332,995 bits:

        >>> words = SparseContent(49216, 30, 1, 332_995)
        >>> input_stores(2708, 1433, 1, 1, InputContent({1: words}))
        {'rows': 487448, 'codebook': 487448, 'sparse': 50124, 'sparse codebook': 43968}

        Each row divided by its sum, at full precision:

        >>> words = SparseContent(49216, 30, 29, 332_995)
        >>> content = InputContent({32: words}, row_value="1/count")
        >>> input_stores(2708, 1433, 32, 1, content)["sparse 1/count"]
        43964
    """
    is_full = bit_width == FULL_PRECISION
    sizes = {"rows": packed_rows_nbytes(num_rows, num_columns, bit_width, num_ranges)}
    found = content.by_width.get(bit_width)
    if found is None:
        return sizes
    if found.num_values is not None:
        values = found.num_values + (found.num_nonzeros < num_rows * num_columns)
        bits = max(1, bits_for(values - 1))
        sizes["codebook"] = packed_nbytes(num_rows, num_columns, bits) + 4 * values
    if found.gap_bits is None:
        return sizes
    places = places_nbytes(num_rows, num_columns, found.max_row_nonzeros, found.gap_bits)
    codes = integers_nbytes(found.num_nonzeros, bit_width)
    sizes["sparse"] = places + codes + (0 if is_full else RANGE_BYTES * num_ranges)
    if found.num_values is not None:
        bits = bits_for(max(0, found.num_values - 1))
        codes = integers_nbytes(found.num_nonzeros, bits) + 4 * found.num_values
        sizes["sparse codebook"] = places + codes
    if content.row_value is not None and (is_full or bit_width in content.lossless):
        sizes |= _row_value_stores(num_rows, places, content.row_value, found)
    return sizes


def _row_value_stores(
    num_rows: int, places: int, row_value: RowValue, found: SparseContent
) -> dict[str, int]:
    """Return the bytes of the stores of rows of one value, with those of their places."""
    if row_value == "1/count":
        return {"sparse 1/count": places}
    sizes = {"sparse row values": places + 4 * num_rows}
    if found.num_values is not None:
        codes = integers_nbytes(num_rows, bits_for(max(0, found.num_values - 1)))
        sizes["sparse row codebook"] = places + codes + 4 * found.num_values
    return sizes
