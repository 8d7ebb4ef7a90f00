"""Packing of codes of 1-8 and 16 bits into bytes, and unpacking.

A code is stored in planes whose widths divide a byte (:func:`.layout.planes`), the highest bits
first. In a plane of ``b`` bits, a row of F codes takes ``S = ceil(F * b / 8)`` bytes, and code
``f`` is field ``f // S`` of byte ``f % S``. Unpacking a field is therefore one shift and one mask
over contiguous bytes. Every row starts at a whole byte and can be read alone.

A worked example with five codes of 3 bits::

    codes                    5 = 101   3 = 011   6 = 110   0 = 000   7 = 111
    high plane, 2 bits           10        01        11        00        11     S = 2
        byte 0 holds codes 0, 2, 4 in its fields:  10 | 11 << 2 | 11 << 4 = 0b111110 = 62
        byte 1 holds codes 1, 3:                   01 | 00 << 2           = 0b000001 =  1
    low plane, 1 bit              1         1         0         0         1     S = 1
        byte 0 holds all:                     1 | 1 << 1 | 0 | 0 | 1 << 4 = 0b010011 = 19
    packed row               62, 1, 19
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.quantization.layout import planes, row_bytes


def pack(codes: Tensor, bit_width: int) -> Tensor:
    """Pack a matrix of codes.

    Args:
        codes:
            Codes, ``[R, F]``, integers in ``[0, 2**bit_width - 1]``.
        bit_width:
            Bits, 1-8 or 16.

    Returns:
        Packed rows, ``[R, row_bytes(F, bit_width)]`` uint8.

    Raises:
        PackingError:
            If a code is out of range, or the codes are not an integer matrix.
        ValueError:
            If the width is not 1-8 or 16.
    """
    widths = planes(bit_width)
    if codes.dim() != 2 or codes.is_floating_point() or codes.is_complex():
        raise PackingError(
            f"codes: expected an integer matrix [R, F], got {codes.dtype} {list(codes.shape)}"
        )
    if codes.numel():
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= 1 << bit_width:
            raise PackingError(
                f"codes: expected 0 to {(1 << bit_width) - 1} for {bit_width} bits, got "
                f"{low if low < 0 else high}"
            )
    codes = codes.to(_code_type(bit_width))
    packed = codes.new_zeros(len(codes), row_bytes(codes.shape[1], bit_width), dtype=torch.uint8)
    start, left = 0, bit_width
    for width in widths:
        left -= width
        end = start + -(-codes.shape[1] * width // 8)
        _pack_plane(((codes >> left) & ((1 << width) - 1)).byte(), width, packed[:, start:end])
        start = end
    return packed


def unpack(
    packed: Tensor, num_columns: int, bit_width: int, start: int = 0, stop: int | None = None
) -> Tensor:
    """Unpack rows of :func:`pack`: any subset of the rows, and any range of columns.

    Args:
        packed:
            Packed rows, ``[R, row_bytes(F, bit_width)]`` uint8.
        num_columns:
            Number of codes F in a row.
        bit_width:
            Bits, 1-8 or 16.
        start:
            First column to unpack.
        stop:
            Column after the last one to unpack; ``None`` for F.

    Returns:
        Codes, ``[R, stop - start]`` uint8, or int32 for 16 bits.

    Raises:
        PackingError:
            If the rows do not have the length of F codes of that width.
        ValueError:
            If the width is not 1-8 or 16.
    """
    expected = row_bytes(num_columns, bit_width)
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != expected:
        raise PackingError(
            f"packed rows: expected uint8 [R, {expected}] for {num_columns} codes of {bit_width} "
            f"bits, got {packed.dtype} {list(packed.shape)}"
        )
    stop = num_columns if stop is None else stop
    codes = packed.new_empty(len(packed), stop - start, dtype=_code_type(bit_width))
    first_byte = 0
    for width in planes(bit_width):
        last_byte = first_byte + -(-num_columns * width // 8)
        if first_byte:
            codes <<= width
        _unpack_plane(packed[:, first_byte:last_byte], width, start, codes, add=first_byte > 0)
        first_byte = last_byte
    return codes


def _code_type(bit_width: int) -> torch.dtype:
    return torch.uint8 if bit_width <= 8 else torch.int32


def _pack_plane(codes: Tensor, width: int, plane: Tensor) -> None:
    """Write the fields of a plane, ``[R, S]`` of zeros; the last field may be shorter."""
    fields = codes.split(max(1, plane.shape[1]), dim=1)
    for shift, field in zip(range(0, 8, width), fields, strict=False):
        plane[:, : field.shape[1]] |= field << shift


def _unpack_plane(plane: Tensor, width: int, start: int, codes: Tensor, *, add: bool) -> None:
    """Write or add columns of a plane, ``[R, S]``, from ``start`` on, to ``codes``."""
    size, stop = plane.shape[1], start + codes.shape[1]
    for field in range(start // size, -(-stop // size)) if size else ():
        low, high = max(start, field * size), min(stop, (field + 1) * size)
        part = plane[:, low - field * size : high - field * size]
        if width < 8:
            part = (part & (((1 << width) - 1) << field * width)).bitwise_right_shift_(
                field * width
            )
        target = codes[:, low - start : high - start]
        if add:
            target |= part
        else:
            target.copy_(part)
