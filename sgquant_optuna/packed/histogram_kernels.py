"""Compiled kernel of the ``fast`` extra for histograms of features."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def add_rows(x, line, origin, per_width, counts, sums):  # type: ignore[no-untyped-def]
    """Add the values of ``x``, ``[n, F]``, to the histogram ``line`` of their row.

    Neighbours of one bin are added up before they are written: in sparse features most are zero,
    and each would wait for the one before it.
    """
    last = counts.shape[1] - 1
    for row in range(len(x)):
        group = line[row]
        start, factor = origin[group], per_width[group]
        of_bin, in_bin = sums[group], counts[group]
        bin_before, count, total = 0, 0.0, 0.0
        for j in range(x.shape[1]):
            value = np.float64(x[row, j])
            number = min(int((value - start) * factor), last)
            if number != bin_before:
                in_bin[bin_before] += count
                of_bin[bin_before] += total
                bin_before, count, total = number, 0.0, 0.0
            count += 1.0
            total += value
        in_bin[bin_before] += count
        of_bin[bin_before] += total
