"""Compiled kernels of the ``fast`` extra; import this file only where numba is installed.

They are functions of the module, so that numba's cache on disk finds them again, and they index
row slices from 0 with unsigned bytes: a computed signed index stops LLVM from vectorizing.
"""

from __future__ import annotations

import threading

import numba
import numpy as np
from numba import njit, prange

# numba's OpenMP layer would load a second OpenMP next to torch's. Its own work queue does not,
# but takes one caller at a time.
numba.config.THREADING_LAYER = "workqueue"  # type: ignore[attr-defined]
LOCK = threading.Lock()


@njit(cache=True, fastmath=True, inline="always")
def _add_row(packed, widths, num_columns, factor, out):  # type: ignore[no-untyped-def]
    """Add ``factor`` times the codes of a packed row to ``out``, ``[F + 8]``."""
    left = 0
    for width in widths:
        left += width
    start = 0
    for width in widths:
        if width == 0:
            continue
        left -= width
        stride = (num_columns * width + 7) // 8
        plane = packed[start : start + stride]
        start += stride
        step = np.float32(factor * (1 << left))
        if width == 8:
            for j in range(stride):
                out[j] += step * np.float32(plane[j])
            continue
        mask = np.uint8((1 << width) - 1)
        for field in range(8 // width):
            shift = np.uint8(field * width)
            part = out[field * stride : (field + 1) * stride]
            for j in range(stride):
                part[j] += step * np.float32((plane[j] >> shift) & mask)


@njit(cache=True, parallel=True)
def unpack_rows(packed, widths, num_columns, out):  # type: ignore[no-untyped-def]
    """Unpack rows, ``[R, bytes]``, to float32 codes in ``out``, ``[R, F + 8]``."""
    left = 0
    for width in widths:
        left += width
    for row in prange(len(packed)):
        line = out[row]
        high = left - widths[0]
        stride = (num_columns * widths[0] + 7) // 8
        # The first plane is written, not added: most widths have no other.
        mask, step = np.uint8((1 << widths[0]) - 1), np.float32(1 << high)
        plane = packed[row, :stride]
        for field in range(8 // widths[0]):
            shift = np.uint8(field * widths[0])
            part = line[field * stride : (field + 1) * stride]
            for j in range(stride):
                part[j] = step * np.float32((plane[j] >> shift) & mask)
        if high:
            _add_row(packed[row, stride:], widths[1:], num_columns, np.float32(1), line)


@njit(cache=True, parallel=True)
def pack_rows(  # type: ignore[no-untyped-def]
    x, nodes, lines, scale, zero_point, bit_width, widths, to_nearest, packed
):
    """Quantize and pack the rows ``nodes`` of ``x`` into ``[R, bytes]``; count those with NaN.

    Not ``fastmath``: a code must be the one that torch computes, and NaN must be seen.
    """
    num_columns = x.shape[1]
    by_column = scale.shape[1] > 1
    top = np.float32((1 << bit_width) - 1)
    bad = 0
    for row in prange(len(nodes)):
        codes = np.zeros(num_columns + 8, np.uint16)
        values, line = x[nodes[row]], lines[row]
        step, low = scale[line, 0], zero_point[line, 0]
        is_bad = False
        for j in range(num_columns):
            if by_column:
                step, low = scale[line, j], zero_point[line, j]
            value = (values[j] - low) / step
            value = np.rint(value) if to_nearest else np.floor(value)
            is_bad |= value != value
            codes[j] = np.uint16(min(max(value, np.float32(0)), top))
        bad += is_bad
        left = bit_width
        start = 0
        for width in widths:
            if width == 0:
                continue
            left -= width
            stride = (num_columns * width + 7) // 8
            mask = np.uint16((1 << width) - 1)
            plane = packed[row, start : start + stride]
            for j in range(stride):
                plane[j] = np.uint8(0)
            for field in range(8 // width):
                shift = np.uint16(field * width)
                part = codes[field * stride : (field + 1) * stride]
                for j in range(min(stride, max(0, num_columns - field * stride))):
                    plane[j] |= np.uint8(((part[j] >> np.uint16(left)) & mask) << shift)
            start += stride
    return bad


@njit(cache=True, parallel=True, fastmath=True)
def aggregate_by_column(  # type: ignore[no-untyped-def]
    crow, col, weight, data, full, starts, strides, widths, bucket, position,
    scale, zero_point, out,
):  # fmt: skip
    """Do as :func:`aggregate` where each bucket has a range for each column, ``[B, F]``.

    Codes are added up for each bucket alone, and each sum is scaled once.
    """
    num_columns = out.shape[1]
    num_buckets = len(widths)
    for row in prange(len(out)):
        total = np.zeros((num_buckets, num_columns + 8), np.float32)
        weights = np.zeros(num_buckets, np.float32)
        for edge in range(crow[row], crow[row + 1]):
            node = col[edge]
            b = bucket[node]
            if widths[b, 0] == 0:
                values = full[starts[b] // strides[b] + position[node]]
                for j in range(num_columns):
                    total[b, j] += weight[edge] * values[j]
                continue
            begin = starts[b] + strides[b] * position[node]
            weights[b] += weight[edge]
            _add_row(
                data[begin : begin + strides[b]], widths[b], num_columns, weight[edge], total[b]
            )
        for j in range(num_columns):
            value = np.float32(0)
            for b in range(num_buckets):
                if widths[b, 0] == 0:
                    value += total[b, j]
                else:
                    value += scale[b, j] * total[b, j] + zero_point[b, j] * weights[b]
            out[row, j] = value


@njit(cache=True, parallel=True, fastmath=True)
def aggregate(  # type: ignore[no-untyped-def]
    crow, col, weight, data, full, starts, strides, widths, bucket, position,
    scale, zero_point, by_row, out,
):  # fmt: skip
    """Add up the weighted rows of the neighbours: ``out = A @ X``, ``[R, F]``."""
    num_columns = out.shape[1]
    for row in prange(len(out)):
        total = np.zeros(num_columns + 8, np.float32)
        constant = np.float32(0)
        for edge in range(crow[row], crow[row + 1]):
            node = col[edge]
            b = bucket[node]
            if widths[b, 0] == 0:
                values = full[starts[b] // strides[b] + position[node]]
                for j in range(num_columns):
                    total[j] += weight[edge] * values[j]
                continue
            line = node if by_row else b
            begin = starts[b] + strides[b] * position[node]
            constant += weight[edge] * zero_point[line]
            _add_row(
                data[begin : begin + strides[b]],
                widths[b],
                num_columns,
                weight[edge] * scale[line],
                total,
            )
        for j in range(num_columns):
            out[row, j] = total[j] + constant
