"""The promise of a study: an upper bound of the drop of each trial, learned from all of them.

Each trial knows, for every node outside training and without a label, how probable the full
precision models find the class that a quantized model gave up and the one that it took. The mean
difference is its *expected drop* f. It ranks trials almost as the true drop does, but its scale is
not the drop's. So labels serve for one number that all trials share, the slope k from f to the
drop::

    k = sum_c w_c d_c,  w_c = f_c / sum_c f_c^2,    d_c: drop of trial c on the labelled nodes
    var(k) = var_i(sum_c w_c d_ci) / |V| + var_s(k_s) / S

over the labelled nodes i in V and the S trainings s, each with a slope k_s of its own. The drop of
trial c is then about ``k f_c``, with the variance ``f_c^2 var(k) + v_c``. Here v_c is the luck of
the nodes: what the drop on so many nodes varies by, if labels are drawn from the probabilities of
the full-precision models. The bound adds z deviations, with z the quantile of the confidence.
``benchmarks/promises.py`` compares this rule with others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, variance
from typing import Self

import numpy as np

from sgquant_optuna.study.drop_evidence import DropEvidence

_NEAR = 10.0  # percent of flips: beyond, the drop is not proportional any more
_PRIOR_SLOPE = 1.0  # exact if the probabilities of the full-precision models were
_PRIOR_ERROR = 0.7
_PRIOR_SPREAD = 0.4  # deviation of the slope between trainings, relative to it
_LEAST_SLOPE = 0.1  # of a bound: no flips are free


@dataclass(frozen=True)
class DropSlope:
    """Drop of accuracy for each point of expected drop.

    Args:
        slope:
            Slope k.
        error:
            Standard error of the slope, over labelled nodes and trainings.
    """

    slope: float = _PRIOR_SLOPE
    error: float = _PRIOR_ERROR

    @classmethod
    def learned(cls, trials: Sequence[tuple[float, DropEvidence]]) -> Self:
        """Learn the slope from the trials near full precision, with a prior of 1 +- 0.7.

        Args:
            trials:
                Flips in percent and evidence of each trial of one study; they share labelled nodes
                and trainings.
        """
        limit = max(_NEAR, min((flips for flips, _ in trials), default=0.0))
        near = [evidence for flips, evidence in trials if flips <= limit]
        square = sum(one.expected_drop**2 for one in near)
        if not square:
            return cls()
        lost = sum(one.expected_drop / square * 100.0 * one.lost_by_group() for one in near)
        assert isinstance(lost, np.ndarray)
        nodes, groups = near[0].nodes, near[0].groups
        slope = float(lost.sum()) / nodes
        by_nodes = float(lost.var()) * groups**2 / (max(groups - 1, 1) * nodes**2)
        # Where no labelled node changes, nothing is known yet.
        error = by_nodes + _between_trainings(near, slope) if by_nodes else math.inf
        precision = 1 / error + 1 / _PRIOR_ERROR**2
        return cls(
            slope=(slope / error + _PRIOR_SLOPE / _PRIOR_ERROR**2) / precision,
            error=math.sqrt(1 / precision),
        )

    def estimate(self, expected_drop: float) -> float:
        """Return the most probable drop for an expected drop, both in the metric's unit."""
        return self.slope * expected_drop

    def bound(self, expected_drop: float, deviation: float, confidence: float) -> float:
        """Return what a drop does not exceed with a confidence, in the metric's unit.

        Args:
            expected_drop:
                Expected drop, in the metric's unit.
            deviation:
                Luck of the nodes, in the metric's unit.
            confidence:
                Probability of the bound, in (0, 1).
        """
        error = math.hypot(expected_drop * self.error, deviation)
        margin = NormalDist().inv_cdf(confidence) * error
        return max(self.slope * expected_drop + margin, _LEAST_SLOPE * expected_drop)


def certifiable_flips(
    slope: DropSlope,
    trials: Sequence[tuple[float, DropEvidence]],
    max_drop: float,
    confidence: float,
) -> float | None:
    """Return up to how many flips a limit can be promised with the labels that there are.

    Args:
        slope:
            Slope that the study has learned.
        trials:
            Flips in percent and evidence of each trial.
        max_drop:
            Limit of the drop, in the metric's unit.
        confidence:
            Probability of the bound, in (0, 1).

    Returns:
        Percent of the predictions, for flips like those of the trials near full precision, or
        ``None`` where no trial changes one.
    """
    near = [(flips, one) for flips, one in trials if flips <= _NEAR and one.expected_drop > 0]
    if not near:
        return None
    expected = sum(one.expected_drop for _, one in near)
    flips_each = sum(flips for flips, _ in near) / expected
    variance_each = sum(one.deviation**2 for _, one in near) / expected
    low, high = 0.0, _NEAR / flips_each
    for _ in range(50):
        middle = (low + high) / 2
        bound = slope.bound(middle, math.sqrt(variance_each * middle), confidence)
        low, high = (middle, high) if bound <= max_drop else (low, middle)
    return low * flips_each


def _between_trainings(near: Sequence[DropEvidence], slope: float) -> float:
    """Return the variance of the slope by the choice of trainings."""
    slopes = []
    for training in range(max(one.trainings for one in near)):
        having = [one for one in near if one.trainings > training]
        square = sum(one.expected[training] ** 2 for one in having)
        if square:
            product = sum(one.expected[training] * one.measured[training] for one in having)
            slopes.append(product / square)
    if len(slopes) < 2:
        return (_PRIOR_SPREAD * slope) ** 2
    return variance(slopes) / len(slopes)
