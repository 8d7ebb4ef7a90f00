"""Scores of candidates: how much a measurement is expected to gain.

Every quantity is minimised, and a batch is chosen so that its members gain together: a candidate
that would win only where an earlier member of the batch wins too adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from sgquant_optuna.sampler.gaussian_process import Prediction
from sgquant_optuna.sampler.space import Floats


def expected_improvement(prediction: Prediction, best: float | Floats) -> Floats:
    """Expected amount by which a target falls below ``best``."""
    z = (best - prediction.mean) / prediction.deviation
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    improvement: Floats = prediction.deviation * (z * ndtr(z) + density)
    return np.maximum(improvement, 0)


def greedy_batch(gains: Floats, size: int) -> list[int]:
    """Choose candidates whose best member gains most, averaged over joint draws.

    Args:
        gains:
            Gain of each candidate in each joint draw, not negative, ``[draws, n]``.
        size:
            Candidates to choose, at most.

    Returns:
        Positions, best first. It ends early once nothing more is gained.
    """
    reached = np.zeros(len(gains))
    chosen: list[int] = []
    while len(chosen) < min(size, gains.shape[1]):
        added = np.maximum(gains - reached[:, None], 0).mean(axis=0)
        position = int(np.argmax(added))
        if added[position] <= 0:
            break
        chosen.append(position)
        reached = np.maximum(reached, gains[:, position])
    return chosen


@dataclass(frozen=True)
class Staircase:
    """The Pareto front of an exact and a learned quantity, as steps over the exact one.

    Args:
        starts:
            Where each step starts, ascending; the first is minus infinity.
        heights:
            The learned quantity that is reached on each step, descending.
        end:
            Reference point on the exact axis.
    """

    starts: Floats
    heights: Floats
    end: float

    @classmethod
    def over(cls, exact: Floats, learned: Floats, end: float, top: float) -> Staircase:
        """Build the steps of the points; ``end`` and ``top`` are the reference point."""
        order = np.lexsort((learned, exact))
        starts, heights = [-np.inf], [top]
        for position in order:
            if learned[position] < heights[-1] and exact[position] < end:
                starts.append(float(exact[position]))
                heights.append(float(learned[position]))
        return cls(np.array(starts), np.array(heights), end)

    def with_point(self, exact: float, learned: float) -> Staircase:
        """Return the front after one more measurement."""
        return Staircase.over(
            np.append(self.starts[1:], exact),
            np.append(self.heights[1:], learned),
            self.end,
            float(self.heights[0]),
        )

    def expected_gain(self, exact: Floats, prediction: Prediction) -> Floats:
        """Expected hypervolume that each candidate adds, ``[n]``.

        Over a step of width w at height h, a candidate to the left of it with target f adds
        ``w * max(h - f, 0)``, so the expectation is a sum of expected improvements.
        """
        ends = np.append(self.starts[1:], self.end)
        gain = np.zeros(len(exact))
        for start, end, height in zip(self.starts, ends, self.heights, strict=True):
            width = np.maximum(end - np.maximum(exact, start), 0)
            gain += width * expected_improvement(prediction, height)
        return gain
