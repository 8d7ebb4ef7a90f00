"""Bytes of packed codes, by arithmetic alone: reports import no torch.

A code is stored in planes whose widths divide a byte, the widest first: 3 bits are a plane of 2
bits and a plane of 1 bit. In a plane of ``b`` bits, a row of F codes takes ``ceil(F * b / 8)``
bytes.
"""

from __future__ import annotations

from sgquant_optuna.quantization.sites import PACKED_WIDTHS

_PLANES = {16: (8, 8)} | {
    width: tuple(plane for plane in (8, 4, 2, 1) if width & plane) for width in range(1, 9)
}


def planes(bit_width: int) -> tuple[int, ...]:
    """Return the widths of the planes of a bit width, the highest bits first.

    Example:
        >>> planes(7)
        (4, 2, 1)

    Raises:
        ValueError:
            If the width is not 1-8 or 16.
    """
    if bit_width not in _PLANES:
        raise ValueError(f"bit width to pack: expected one of {PACKED_WIDTHS}, got {bit_width!r}")
    return _PLANES[bit_width]


def row_bytes(num_columns: int, bit_width: int) -> int:
    """Return the bytes of one row of ``num_columns`` codes; every row starts at a whole byte.

    Example:
        >>> row_bytes(9, 3)  # 9 codes in a plane of 2 bits and a plane of 1: 3 + 2
        5

    Raises:
        ValueError:
            If the width is not 1-8 or 16.
    """
    return sum(-(-num_columns * plane // 8) for plane in planes(bit_width))


def packed_nbytes(num_rows: int, num_columns: int, bit_width: int) -> int:
    """Return the bytes of the packed codes of a matrix, without scales and zero points.

    Raises:
        ValueError:
            If the width is not 1-8 or 16.
    """
    return num_rows * row_bytes(num_columns, bit_width)


def bits_for(largest: int) -> int:
    """Return the bits that represent 0 to ``largest``; 0 bits if all integers are 0.

    Example:
        >>> bits_for(1432)  # the columns of Cora
        11
    """
    return int(largest).bit_length()


def integers_nbytes(count: int, bits: int) -> int:
    """Return the bytes of ``count`` integers of ``bits`` bits; each plane ends at a whole byte.

    Example:
        >>> integers_nbytes(9, 11)  # planes of 8, 2 and 1 bits: 9 + 3 + 2
        14
    """
    return sum(-(-count * width // 8) for width in integer_planes(bits))


def integer_planes(bits: int) -> tuple[int, ...]:
    """Return the widths of the planes of integers of any number of bits, the highest first.

    Example:
        >>> integer_planes(11)
        (8, 2, 1)
    """
    return (8,) * (bits // 8) + (planes(bits % 8) if bits % 8 else ())


NUM_CLASSES = 8
"""Classes of the columns of a sparse store, by how often they are not zero."""
PARAMETER_BITS = 4
"""Bits of the parameter of a class."""
ROWS_OF_START = 64
"""Rows that share the stored start of their gaps."""


def places_nbytes(num_rows: int, num_columns: int, most_in_row: int, gap_bits: int) -> int:
    """Return the bytes of the places of non-zeros: their gaps, and what is needed to read these.

    Args:
        num_rows:
            Number of rows.
        num_columns:
            Number of columns.
        most_in_row:
            Largest number of non-zeros in one row.
        gap_bits:
            Bits of all gaps, as ``gap_codes.py`` counts them.

    Example:
        Cora: the counts of 2,708 rows at 5 bits, the classes of 1,433 columns at 3 bits, a
        parameter of 4 bits for each class, 43 starts at 19 bits, and the gaps:

        >>> places_nbytes(2708, 1433, 30, 332_995)
        43964
    """
    counts = integers_nbytes(num_rows, bits_for(most_in_row))
    classes = integers_nbytes(num_columns, bits_for(NUM_CLASSES - 1))
    parameters = integers_nbytes(NUM_CLASSES, PARAMETER_BITS)
    gaps = -(-gap_bits // 8)
    starts = integers_nbytes(-(-num_rows // ROWS_OF_START), bits_for(8 * gaps))
    return counts + classes + parameters + starts + gaps
