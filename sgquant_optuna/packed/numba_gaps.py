"""Compiled reading of the places of non-zeros, for the ``fast`` extra, by :mod:`.gap_places`."""

from __future__ import annotations

import numpy as np
from numba import njit

_SHORT = 32  # non-zeros of a row that insertion sorts faster than a look at all columns


@njit(cache=True, nogil=True)
def columns_of_rows(  # type: ignore[no-untyped-def]
    stream, starts, counts, order, parameters, escape, raw_bits, out
):
    """Read the columns of some rows, rising within each.

    Args:
        stream:
            Bits of all gaps and 8 bytes more, ``[n]`` uint8.
        starts:
            Bit at which each row begins, ``[m]`` int64.
        counts:
            Number of its non-zeros, ``[m]`` int64.
        order:
            Columns by their places, ``[F]`` int64.
        parameters:
            Parameter of the class of each place, ``[F + 1]`` int64.
        escape:
            Ones after which a gap is written as it is.
        raw_bits:
            Bits of such a gap.
        out:
            Columns, ``[sum of counts]`` int64.
    """
    done = 0
    is_there = np.zeros(len(order), dtype=np.bool_)
    for row in range(len(starts)):
        position, place = starts[row], -1
        is_short = counts[row] <= _SHORT
        for at in range(counts[row]):
            gap, position = _next(stream, position, parameters[place + 1], escape, raw_bits)
            place += 1 + gap
            if is_short:
                _insert(out, done, done + at, order[place])
            else:
                is_there[order[place]] = True
        if is_short:
            done += counts[row]
            continue
        for column in range(len(order)):
            if is_there[column]:
                is_there[column] = False
                out[done] = column
                done += 1


@njit(cache=True, nogil=True)
def _insert(out, first, left, column):  # type: ignore[no-untyped-def]
    """Insert a column into sorted ones: most come in order already."""
    while left > first and out[left - 1] > column:
        out[left] = out[left - 1]
        left -= 1
    out[left] = column


@njit(cache=True, nogil=True)
def starts_of_rows(  # type: ignore[no-untyped-def]
    stream, starts, counts, num_columns, parameters, escape, raw_bits, rows_of_start, out
):
    """Find the bit at which each row begins, and check its gaps.

    Args:
        stream:
            Bits of all gaps and 8 bytes more, ``[n]`` uint8.
        starts:
            Bit at which each group of rows begins, ``[groups]`` int64.
        counts:
            Non-zeros of each row, ``[R]`` int64.
        num_columns:
            Number of columns F.
        parameters:
            Parameter of the class of each place, ``[F + 1]`` int64.
        escape:
            Ones after which a gap is written as it is.
        raw_bits:
            Bits of such a gap.
        rows_of_start:
            Rows of a group.
        out:
            Bits, ``[R]`` int64.

    Returns:
        Bit at which each group ends, ``[groups]`` int64, and the largest place of a non-zero.
    """
    ends, largest = np.zeros_like(starts), -1
    last = 8 * (len(stream) - 8)
    for group in range(len(starts)):
        position = starts[group]
        first = group * rows_of_start
        for row in range(first, min(first + rows_of_start, len(counts))):
            out[row], place = position, -1
            for _ in range(counts[row]):
                if position > last:
                    break
                gap, position = _next(stream, position, parameters[place + 1], escape, raw_bits)
                place += 1 + gap
                if place >= num_columns:
                    return ends, place
                largest = max(largest, place)
        ends[group] = position
    return ends, largest


@njit(cache=True, nogil=True)
def _next(stream, position, parameter, escape, raw_bits):  # type: ignore[no-untyped-def]
    """Return the gap at a bit, and the bit after it."""
    byte = position >> 3
    word = np.uint64(0)
    for at in range(8):
        word |= np.uint64(stream[byte + at]) << np.uint64(8 * at)
    word >>= np.uint64(position & 7)
    ones = 0
    while ones < escape and (word >> np.uint64(ones)) & np.uint64(1):
        ones += 1
    if ones == escape:
        low = (word >> np.uint64(escape)) & ((np.uint64(1) << np.uint64(raw_bits)) - np.uint64(1))
        return np.int64(low), position + escape + raw_bits
    mask = (np.uint64(1) << np.uint64(parameter)) - np.uint64(1)
    low = (word >> np.uint64(ones + 1)) & mask
    return (ones << parameter) | np.int64(low), position + ones + 1 + parameter
