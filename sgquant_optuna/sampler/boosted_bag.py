"""A cost model of boosted trees whose bag tells the uncertainty.

Reference:
    Breiman (1996), "Bagging Predictors", for the bag, and "Out-of-Bag Estimation" for predictions
    of measurements that a member has not seen.
"""

from __future__ import annotations

import numpy as np

from sgquant_optuna.sampler.boosted_forest import Forest, PairTables, Steps
from sgquant_optuna.sampler.gaussian_process import Prediction, limited_rows
from sgquant_optuna.sampler.space import Features, Flags, Floats

_MEMBERS = 20
_TREES = 30
_SCALES = (0.5, 3.0)  # limits of the factor that makes the spread of the members a deviation
_MIN_DEVIATION = 1e-3
_CLEAR = 0.8  # share of the change, net of what goes back, that makes a target monotone


class BoostedBag:
    """Bagged gradient boosting whose members are additive in pairs of features.

    Each member is fitted to a bootstrap sample. The spread of the members, scaled so that it
    explains the errors out of the bag, is the deviation of the prediction. Where the measurements
    fall (or rise) with the ordered features, no tree rises (or falls) with any of them.

    Args:
        features:
            Features, ``[n, columns]``, n > 0.
        values:
            Finite targets, ``[n]``.
        counts:
            Number of measurements whose mean each target is, ``[n]``.
        seed:
            Seed of the bootstrap samples.
        ordered:
            Whether the target may be monotone in each feature, ``[columns]``; in none by default.
    """

    noise_deviation = 0.0
    """Standard deviation of one measurement: unknown, it counts as an error of the prediction."""

    def __init__(
        self,
        features: Features,
        values: Floats,
        counts: Floats,
        *,
        seed: int,
        ordered: Flags | None = None,
    ) -> None:
        """Fit all members."""
        rng = np.random.default_rng(seed)
        rows = limited_rows(values, rng)
        features, values, counts = features[rows], values[rows], counts[rows]
        if ordered is None:
            ordered = np.zeros(features.shape[1], dtype=np.bool_)
        self._mean = float(values.mean())
        self._unit = max(float(values.std()), 1e-12)
        scaled = (values - self._mean) / self._unit
        count = len(values)
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=_MEMBERS)
        self._steps = Steps.of(features, scaled)
        signs = _signs(features, scaled, ordered)
        forest = Forest(self._steps, features, scaled, drawn * counts, signs)
        for _ in range(_TREES if len(self._steps.columns) else 0):
            forest.add_tree()
        self._tables = PairTables(self._steps, forest)
        unseen = drawn == 0
        # A measurement that every member has seen, as there may be with two of them, has no other.
        unseen[:, ~unseen.any(axis=0)] = True
        left_out = np.sum(forest.fitted * unseen, axis=0) / unseen.sum(axis=0)
        self.left_out: Floats = self._mean + self._unit * left_out
        """Mean prediction of each measurement by the members that have not seen it, ``[n]``."""
        spread = forest.fitted.var(axis=0, ddof=1).mean()
        error = np.mean((scaled - left_out) ** 2)
        self._scale = float(np.clip(np.sqrt(error / max(spread, 1e-12)), *_SCALES))

    def mean(self, features: Features) -> Floats:
        """Mean of the members, ``[n]``."""
        mean: Floats = self._mean + self._unit * self._tables.mean(features)
        return mean

    def predict(self, features: Features) -> Prediction:
        """Predict the target of configurations."""
        members = self._tables.members(features)
        deviation = np.sqrt(self._scale**2 * members.var(axis=1, ddof=1) + _MIN_DEVIATION**2)
        return Prediction(self._mean + self._unit * members.mean(axis=1), self._unit * deviation)

    def sample(self, features: Features, rng: np.random.Generator, count: int) -> Floats:
        """Draw the targets of configurations jointly, ``[count, n]``.

        A draw is the mean of the members plus their differences from it, each times a normal
        number: so draws have the covariance of the members, and there are more than members.
        """
        members = self._tables.members(features)
        mean = members.mean(axis=1, keepdims=True)
        root = (members - mean) * (self._scale / np.sqrt(_MEMBERS - 1))
        drawn = mean + root @ rng.standard_normal((_MEMBERS, count))
        drawn += _MIN_DEVIATION * rng.standard_normal(drawn.shape)
        values: Floats = self._mean + self._unit * drawn.T
        return values


def _signs(features: Features, values: Floats, ordered: Flags) -> Floats:
    """1 for features with which the target rises, -1 where it falls, 0 for the others.

    All pairs of measurements count of which one is at least as high in every ordered feature and
    equal in the others. Uniform configurations are comparable with many, so pairs are not rare.
    """
    above = np.ones((len(values), len(values)), dtype=np.bool_)
    for column, is_ordered in zip(features.T, ordered, strict=True):
        above &= column[:, None] >= column[None] if is_ordered else column[:, None] == column[None]
    change = (values[:, None] - values[None])[above]
    total = np.abs(change).sum()
    share = change.sum() / total if total > 0 else 0.0
    sign = np.sign(share) if abs(share) >= _CLEAR else 0.0
    return np.where(ordered, sign, 0.0)
