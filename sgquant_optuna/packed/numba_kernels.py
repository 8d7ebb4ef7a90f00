"""Compiled kernels of the ``fast`` extra, which needs numba: :mod:`.kernels` calls them.

They are functions of the module, so that numba's cache on disk finds them again. They index row
slices from 0, with unsigned bytes: a computed signed index stops LLVM from vectorizing.
"""

from __future__ import annotations

import threading

import numba
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

# numba's OpenMP layer would load a second OpenMP beside torch's. Its own work queue does not, but
# takes one caller at a time.
numba.config.THREADING_LAYER = "workqueue"  # type: ignore[attr-defined]
LOCK = threading.Lock()


@njit(cache=True, nogil=True)
def unpack_rows(packed, widths, num_columns, out):  # type: ignore[no-untyped-def]
    """Unpack rows, ``[R, bytes]``, to float32 codes in ``out``, ``[R, F + 8]``.

    It runs on one thread: the threads of MKL stay busy while they wait between two products, and
    threads of a second pool would have to wait for them.
    """
    for row in range(len(packed)):
        left = 0
        for width in widths:
            left += width
        start = 0
        for width in widths:
            if width == 0:
                continue
            left -= width
            stride = (num_columns * width + 7) // 8
            plane = packed[row, start : start + stride]
            # The first plane is written, not added: most widths have no other.
            _unpack_plane(plane, width, left, start > 0, out[row])
            start += stride


@njit(cache=True, nogil=True)
def _unpack_plane(plane, width, left, add, out):  # type: ignore[no-untyped-def]
    """Write or add the fields of a plane, ``left`` bits above the lowest, to ``out``."""
    stride = len(plane)
    for field in range(8 // width):
        mask, step = _field(width, field, left)
        part = out[field * stride : (field + 1) * stride]
        if add:
            for j in range(stride):
                part[j] += step * np.float32(plane[j] & mask)
        else:
            for j in range(stride):
                part[j] = step * np.float32(plane[j] & mask)


@njit(cache=True, nogil=True)
def _field(width, field, left):  # type: ignore[no-untyped-def]
    """Return mask and step of a field: it is masked in its place, and scaled down, not shifted."""
    shift = field * width
    return np.uint8(((1 << width) - 1) << shift), np.float32(1 << left) / np.float32(1 << shift)


@njit(cache=True, parallel=True)
def pack_rows(  # type: ignore[no-untyped-def]
    x, nodes, lines, scale, zero_point, bit_width, widths, to_nearest, packed
):
    """Quantize and pack the rows ``nodes`` of ``x`` into ``[R, bytes]``; count those with NaN.

    Without ``fastmath``: codes must be those that torch computes, and NaN must be found.
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


QUEUE = 8
"""Rows of a bucket that are prefetched before the first :data:`TOGETHER` of them are added up."""
TOGETHER = 4
"""Rows that are added up in one pass: the sums are read and written once for all of them."""


@intrinsic
def _prefetch(typing_context, array, index):  # type: ignore[no-untyped-def]
    """Prefetch the cache line of ``array[index]`` into the second level: the first is small."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address_type, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address_type, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        address = builder.bitcast(builder.gep(data, [arguments[1]]), address_type)
        read, second_level, is_data = number(0), number(2), number(1)
        builder.call(function, [address, read, second_level, is_data])
        return context.get_dummy_value()

    return types.void(array, index), generate


@njit(cache=True, fastmath=True)
def _add_rows(data, places, factors, stride, widths, num_columns, out):  # type: ignore[no-untyped-def]
    """Add :data:`TOGETHER` rows of codes, each multiplied by its factor, to ``out``."""
    left = 0
    for width in widths:
        left += width
    start = 0
    for width in widths:
        if width == 0:
            continue
        left -= width
        size = (num_columns * width + 7) // 8
        a = data[places[0] + start : places[0] + start + size]
        b = data[places[1] + start : places[1] + start + size]
        c = data[places[2] + start : places[2] + start + size]
        d = data[places[3] + start : places[3] + start + size]
        start += size
        for field in range(8 // width):
            mask, step = _field(width, field, left)
            by_a, by_b = step * factors[0], step * factors[1]
            by_c, by_d = step * factors[2], step * factors[3]
            part = out[field * size : (field + 1) * size]
            for j in range(size):
                part[j] += (
                    by_a * np.float32(a[j] & mask)
                    + by_b * np.float32(b[j] & mask)
                    + by_c * np.float32(c[j] & mask)
                    + by_d * np.float32(d[j] & mask)
                )


@njit(cache=True, parallel=True, fastmath=True)
def aggregate(  # type: ignore[no-untyped-def]
    crow, col, weight, data, full, starts, strides, widths, bucket, position,
    scale, zero_point, by_row, out,
):  # fmt: skip
    """Add up the weighted rows of the neighbours: ``out = A @ X``, ``[R, F]``.

    With one range for each row or bucket, the weight of an edge is multiplied by the scale. With
    one range for each column, ``[B, F]``, the codes of each bucket are added up, and each sum is
    scaled once.
    """
    num_columns, num_buckets = out.shape[1], len(widths)
    by_column = scale.shape[1] > 1
    for row in prange(len(out)):
        total = np.zeros((num_buckets if by_column else 1, num_columns + 8), np.float32)
        constant = np.float32(0)
        weights = np.zeros(num_buckets, np.float32)
        places = np.zeros((num_buckets, QUEUE), np.int64)
        factors = np.zeros((num_buckets, QUEUE), np.float32)
        waiting = np.zeros(num_buckets, np.int64)
        for edge in range(crow[row], crow[row + 1]):
            node, factor = col[edge], weight[edge]
            b = bucket[node]
            if widths[b, 0] == 0:
                values = full[starts[b] // strides[b] + position[node]]
                line = total[b if by_column else 0]
                for j in range(num_columns):
                    line[j] += factor * values[j]
                continue
            if by_column:
                weights[b] += factor
            else:
                of_range = node if by_row else b
                constant += factor * zero_point[of_range, 0]
                factor *= scale[of_range, 0]
            place = starts[b] + strides[b] * position[node]
            for ahead in range(0, strides[b], 64):
                _prefetch(data, place + ahead)  # type: ignore[call-arg]
            n = waiting[b]
            places[b, n], factors[b, n] = place, factor
            waiting[b] = n + 1
            if n + 1 == QUEUE:  # the oldest rows are in the cache now
                line = total[b if by_column else 0]
                _add_rows(data, places[b], factors[b], strides[b], widths[b], num_columns, line)
                for k in range(QUEUE - TOGETHER):
                    places[b, k], factors[b, k] = places[b, k + TOGETHER], factors[b, k + TOGETHER]
                waiting[b] = QUEUE - TOGETHER
        for b in range(num_buckets):
            line = total[b if by_column else 0]
            # Fill up with rows of factor 0.
            for k in range(waiting[b], QUEUE):
                places[b, k], factors[b, k] = places[b, 0], np.float32(0)
            for k in range(0, waiting[b], TOGETHER):
                _add_rows(
                    data, places[b, k:], factors[b, k:], strides[b], widths[b], num_columns, line
                )
        for j in range(num_columns):
            value = constant
            if not by_column:
                value += total[0, j]
            else:
                for b in range(num_buckets):
                    if widths[b, 0] == 0:
                        value += total[b, j]
                    else:
                        value += scale[b, j] * total[b, j] + zero_point[b, j] * weights[b]
            out[row, j] = value
