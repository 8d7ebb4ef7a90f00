"""Histograms of values that arrive in blocks: ranges of a file are measured in one pass.

The range of the values is not known before the last block. So the bins of a group begin with the
first block, and where a value falls outside, neighbouring bins are merged, which makes them twice
as wide. Merging loses nothing: a bin holds the number and the sum of its values. In the end the
values cover at least a quarter of the bins, 2,048, as many as a histogram in memory has
(:mod:`sgquant_optuna.quantization.ranges`).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgquant_optuna.packed import kernels
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.ranges import ranges_of_histogram

NUM_BINS = 8192


class GrowingHistogram:
    """Histogram of each of G groups of values, with bins of the group's own width.

    Args:
        num_groups:
            Number of groups G.
    """

    def __init__(self, num_groups: int) -> None:
        self.lower = np.full(num_groups, np.inf)
        self.upper = np.full(num_groups, -np.inf)
        self.origin = np.zeros(num_groups)
        self.width = np.zeros(num_groups)  # 0 while all values of a group are equal
        self.counts = np.zeros((num_groups, NUM_BINS))
        self.sums = np.zeros((num_groups, NUM_BINS))

    def state(self) -> dict[str, NDArray[np.float64]]:
        """Return everything that the histograms hold, by name; the arrays are shared."""
        return dict(vars(self))

    @classmethod
    def of_state(cls, state: dict[str, NDArray[np.float64]]) -> GrowingHistogram:
        """Return the histograms that had this state."""
        made = cls(0)
        for name in vars(made):
            setattr(made, name, state[name].copy())
        return made

    def add(self, x: Tensor, group: Tensor | None, *, fast: bool | None = None) -> None:
        """Add a block of values.

        Args:
            x:
                Finite values, ``[n, F]`` float32 with at least one column, contiguous.
            group:
                Group of each row, ``[n]`` uint8; ``None`` for one group.
            fast:
                Whether to use the compiled kernel; by default where it is installed.
        """
        if group is None:
            group = torch.zeros(len(x), dtype=torch.uint8)
        self._cover(x, group)
        per_width = np.divide(1, self.width, out=np.zeros_like(self.width), where=self.width > 0)
        if kernels.has_kernels(x.device) if fast is None else fast:
            from sgquant_optuna.packed.histogram_kernels import add_rows

            lines = self.origin, per_width, self.counts, self.sums
            add_rows(x.numpy(), group.numpy(), *lines)
            return
        of_row, values = group.numpy(), x.numpy().astype(np.float64)
        slots = ((values - self.origin[of_row, None]) * per_width[of_row, None]).astype(np.int64)
        slots = np.minimum(slots, NUM_BINS - 1) + NUM_BINS * of_row.astype(np.int64)[:, None]
        flat, size = slots.ravel(), self.counts.size
        self.counts += np.bincount(flat, minlength=size).reshape(self.counts.shape)
        weighted = np.bincount(flat, weights=values.ravel(), minlength=size)
        self.sums += weighted.reshape(self.sums.shape)

    def ranges(self, bit_widths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Choose the range of least squared error of each group at its bit width.

        Args:
            bit_widths:
                Bit width of each group: 1-8, 16 or 32, which needs no range.

        Returns:
            Lower and upper ends, ``[G]`` each; 0 for a group without values.
        """
        is_empty = self.lower > self.upper
        lower, upper = (
            torch.from_numpy(np.where(is_empty, 0, ends).astype(np.float32))
            for ends in (self.lower, self.upper)
        )
        counts = torch.from_numpy(self.counts)
        centers = torch.from_numpy(self.sums) / counts.clamp(min=1)
        low, high = lower.clone(), upper.clone()
        for width in set(bit_widths):
            of = torch.tensor([width == other for other in bit_widths])
            parts = centers[of], counts[of], lower[of], upper[of]
            lows, highs = ranges_of_histogram(*parts, (width,), QuantizerConfig())
            low[of], high[of] = lows[0], highs[0]
        return low, high

    def _cover(self, x: Tensor, group: Tensor) -> None:
        """Widen the bins so that they hold every value of a block."""
        of_row = group.long()
        ends = torch.full((2, len(self.lower)), torch.inf)
        ends[0].scatter_reduce_(0, of_row, x.amin(1), "amin")
        ends[1].neg_().scatter_reduce_(0, of_row, x.amax(1), "amax")
        low, high = (end.double().numpy() + 0.0 for end in ends)  # -0.0 becomes 0.0
        self.lower, self.upper = np.minimum(self.lower, low), np.maximum(self.upper, high)
        for number in np.flatnonzero(self.upper > self.lower).tolist():
            if self.width[number] == 0:
                self._begin(number)
            while self.lower[number] < self.origin[number]:
                self._double(number, downwards=True)
            while self.upper[number] >= self.origin[number] + NUM_BINS * self.width[number]:
                self._double(number, downwards=False)

    def _begin(self, number: int) -> None:
        """Choose the first bins of a group, with the values in the middle of them."""
        low, high = float(self.lower[number]), float(self.upper[number])
        width = 2.0 ** math.ceil(math.log2((high - low) * 2 / NUM_BINS))
        self.width[number] = width
        self.origin[number] = (low + high) / 2 - width * NUM_BINS / 2
        # So far all values were equal, and lay in bin 0.
        count, total = self.counts[number, 0], self.sums[number, 0]
        if count:
            self.counts[number, 0] = self.sums[number, 0] = 0
            slot = int((total / count - self.origin[number]) / width)
            self.counts[number, slot], self.sums[number, slot] = count, total

    def _double(self, number: int, *, downwards: bool) -> None:
        """Make the bins of a group twice as wide: the old ones become one half of the new."""
        half = NUM_BINS // 2
        for table in (self.counts[number], self.sums[number]):
            merged = table.reshape(half, 2).sum(1)
            table[:] = 0
            table[half if downwards else 0 :][:half] = merged
        if downwards:
            self.origin[number] -= NUM_BINS * self.width[number]
        self.width[number] *= 2
