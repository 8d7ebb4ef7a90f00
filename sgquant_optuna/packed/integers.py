"""Small non-negative integers at any number of bits: bucket ids, columns, counts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.quantization.layout import bits_for, integer_planes, integers_nbytes
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
    """Read packed integers at some places, or all of them.

    Args:
        packed:
            Result of :func:`pack_integers`, ``[integers_nbytes(count, bits)]`` uint8.
        count:
            Number of packed integers.
        bits:
            Bits of each integer.
        index:
            Places to read, ``[n]`` int64, or ``None`` for all.

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
    out = torch.zeros_like(index)
    for width, plane in _planes(packed, count, bits):
        if count:
            field = plane[index % len(plane)].long() >> (index // len(plane) * width)
            out = (out << width) | (field & ((1 << width) - 1))
    return out


def read_integer_run(packed: Tensor, count: int, bits: int, start: int, stop: int) -> Tensor:
    """Read neighbouring packed integers: shifts of whole slices, without gathering.

    Args:
        packed:
            Result of :func:`pack_integers`, uint8.
        count:
            Number of packed integers.
        bits:
            Bits of each integer; 0 where all are 0.
        start:
            First place to read.
        stop:
            Place after the last one to read.

    Returns:
        Integers, ``[stop - start]`` int32.
    """
    out = torch.zeros(stop - start, dtype=torch.int32, device=packed.device)
    for width, plane in _planes(packed, count, bits):
        out <<= width
        stride = len(plane)
        # Field k of the plane's bytes holds integers k * stride ... (k + 1) * stride - 1.
        for field in range(8 // width):
            low, high = max(start, field * stride), min(stop, (field + 1) * stride)
            if low < high:
                part = plane[low - field * stride : high - field * stride]
                out[low - start : high - start] |= (part >> (field * width)) & ((1 << width) - 1)
    return out


def pack_buckets(bucket: Tensor, num_buckets: int) -> Tensor:
    """Pack the degree bucket of each node, ``[N]``; no bytes where there is one bucket."""
    return pack_integers(bucket.long(), bits_for(num_buckets - 1))


def read_buckets(packed: Tensor, num_nodes: int, num_buckets: int) -> Tensor:
    """Read the degree bucket of each node, ``[N]`` uint8.

    Raises:
        PackingError:
            If the bytes are not those of that many nodes.
    """
    return read_integers(packed, num_nodes, bits_for(num_buckets - 1)).to(torch.uint8)


def _planes(packed: Tensor, count: int, bits: int) -> Iterator[tuple[int, Tensor]]:
    """Cut packed integers into their planes, the highest bits first: width and bytes of each."""
    start = 0
    for width in integer_planes(bits):
        stride = -(-count * width // 8)
        yield width, packed[start : start + stride]
        start += stride
