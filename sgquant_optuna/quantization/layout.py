"""How many bytes packed codes take: arithmetic alone, so that reports need no torch.

A bit width is stored as planes whose widths divide a byte, the widest first: 3 bits are a plane
of 2 and a plane of 1. In a plane of ``b`` bits, a row of F codes takes ``ceil(F * b / 8)`` bytes.
"""

from __future__ import annotations

from sgquant_optuna.bit_widths import PACKED_WIDTHS

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
    """Bytes of one row of ``num_columns`` codes; every row starts at a whole byte.

    Example:
        >>> row_bytes(9, 3)  # 9 codes in a plane of 2 bits and a plane of 1: 3 + 2
        5
    """
    return sum(-(-num_columns * plane // 8) for plane in planes(bit_width))


def packed_nbytes(num_rows: int, num_columns: int, bit_width: int) -> int:
    """Bytes of the packed codes of a matrix, scales and zero points not counted."""
    return num_rows * row_bytes(num_columns, bit_width)
