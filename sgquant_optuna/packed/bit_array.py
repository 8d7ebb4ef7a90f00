"""Small non-negative integers at any number of bits: bucket ids, columns, counts."""

from __future__ import annotations

import torch
from torch import Tensor

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.quantization.layout import integer_planes, integers_nbytes
from sgquant_optuna.quantization.packing import pack


def pack_integers(values: Tensor, bits: int) -> Tensor:
    """Pack integers, ``[n]``, into ``[integers_nbytes(n, bits)]`` uint8.

    Raises:
        PackingError:
            If an integer is negative or needs more bits.
    """
    if values.numel() and (int(values.min()) < 0 or int(values.max()) >> bits):
        raise PackingError(
            f"integers: expected 0 to {(1 << bits) - 1} for {bits} bits, got "
            f"{int(values.min())} to {int(values.max())}"
        )
    parts, left = [values.new_empty(0, dtype=torch.uint8)], bits
    for width in integer_planes(bits):
        left -= width
        parts.append(pack(((values >> left) & ((1 << width) - 1))[None], width)[0])
    return torch.cat(parts)


def read_integers(packed: Tensor, count: int, bits: int, index: Tensor | None = None) -> Tensor:
    """Read some of ``count`` packed integers, or all of them.

    Args:
        packed:
            What :func:`pack_integers` made, ``[integers_nbytes(count, bits)]`` uint8.
        count:
            Number of packed integers.
        bits:
            Bits of each.
        index:
            Which to read, ``[n]`` int64, or ``None`` for all.

    Returns:
        Integers, ``[n]`` int64.

    Raises:
        PackingError:
            If the bytes are not those of that many integers.
    """
    if packed.dtype != torch.uint8 or packed.shape != (integers_nbytes(count, bits),):
        raise PackingError(
            f"packed integers: expected {integers_nbytes(count, bits)} bytes for {count} of "
            f"{bits} bits, got {packed.dtype} {list(packed.shape)}"
        )
    if index is None:
        index = torch.arange(count, device=packed.device)
    out, start = torch.zeros_like(index), 0
    for width in integer_planes(bits):
        stride = -(-count * width // 8)
        if count:
            field = packed[start + index % stride].long() >> (index // stride * width)
            out = (out << width) | (field & ((1 << width) - 1))
        start += stride
    return out
