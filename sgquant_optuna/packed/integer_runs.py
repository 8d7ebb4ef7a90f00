"""Reads a run of neighbouring packed integers: shifts of whole slices, no gathering."""

from __future__ import annotations

import torch
from torch import Tensor

from sgquant_optuna.quantization.layout import integer_planes


def read_run(packed: Tensor, count: int, bits: int, start: int, stop: int) -> Tensor:
    """Read integers ``start ... stop - 1`` of ``count`` that ``pack_integers`` packed.

    Args:
        packed:
            All packed integers, uint8.
        count:
            How many they are.
        bits:
            Bits of each; 0 where all are 0.
        start:
            First to read.
        stop:
            One behind the last.

    Returns:
        Integers, ``[stop - start]`` int32.
    """
    out = torch.zeros(stop - start, dtype=torch.int32, device=packed.device)
    begin = 0
    for width in integer_planes(bits):
        stride = -(-count * width // 8)
        plane = packed[begin : begin + stride]
        begin += stride
        out <<= width
        # Field k of the plane's bytes holds integers k * stride ... (k + 1) * stride - 1.
        for field in range(8 // width):
            low, high = max(start, field * stride), min(stop, (field + 1) * stride)
            if low < high:
                part = plane[low - field * stride : high - field * stride]
                out[low - start : high - start] |= (part >> (field * width)) & ((1 << width) - 1)
    return out
