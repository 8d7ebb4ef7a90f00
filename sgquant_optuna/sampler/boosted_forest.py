"""Boosted trees of depth two for all members of a bag at once, in milliseconds.

A study has some dozens of measurements on a grid with a few values for each parameter. There a
library of trees spends its time on calls, one for each tree. Here one step of NumPy adds a tree to
every member, and all trees of a member end as one table for each pair of parameters.

Reference:
    Friedman (2001), "Greedy Function Approximation: A Gradient Boosting Machine".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from sgquant_optuna.sampler.space import Features, Floats, Indices

_MAX_STEPS = 256
_MAX_STEPS_OF_FEATURE = 15
_SHRINKAGE = 0.3
_PENALTY = 1.0  # of the squared leaves, in measurements; lambda of Chen and Guestrin (2016)


@dataclass(frozen=True)
class Steps:
    """The places where a tree may split: between two values of one feature.

    Args:
        columns:
            Feature of each step, ascending, ``[steps]``.
        thresholds:
            Place of each step, ascending within a feature, ``[steps]``.
        starts:
            First step of each feature, and the number of steps, ``[columns + 1]``.
    """

    columns: Indices
    thresholds: Floats
    starts: Indices

    @classmethod
    def of(cls, features: Features, values: Floats) -> Steps:
        """Put a step in the middle between any two neighbouring values of a feature.

        A feature of many values gets 15 of these. Of more than 256 steps of all features, those
        are kept that explain most of the targets alone: tables of pairs grow with the square.

        Args:
            features:
                Features of the measurements, ``[n, columns]``.
            values:
                Targets with mean 0, ``[n]``.
        """
        places = [_middles(column) for column in features.T]
        columns = np.repeat(np.arange(len(places)), [len(p) for p in places])
        thresholds = np.concatenate(places)
        if len(columns) > _MAX_STEPS:
            above = features[:, columns] > thresholds
            count = above.sum(axis=0)
            explained = (values @ above) ** 2 * (1 / count + 1 / (len(values) - count))
            kept = np.sort(np.argsort(-explained, kind="stable")[:_MAX_STEPS])
            columns, thresholds = columns[kept], thresholds[kept]
        return cls(columns, thresholds, np.searchsorted(columns, np.arange(len(places) + 1)))

    def above(self, features: Features) -> Floats:
        """1 where a configuration is above a step, else 0, ``[n, steps]``."""
        return np.asarray(features[:, self.columns] > self.thresholds, dtype=np.float64)

    def levels(self, features: Features) -> list[Indices]:
        """Number of steps of each feature that configurations are above, ``[n]`` each."""
        return [
            np.searchsorted(self.thresholds[start:end], column)
            for column, start, end in zip(
                features.T, self.starts[:-1], self.starts[1:], strict=True
            )
        ]


def _middles(column: Floats) -> Floats:
    """Middles between neighbouring values, or 15 of them that are spread evenly."""
    values = np.unique(column)
    middles: Floats = (values[1:] + values[:-1]) / 2
    if len(middles) > _MAX_STEPS_OF_FEATURE:
        spread = np.linspace(0, len(middles) - 1, _MAX_STEPS_OF_FEATURE)
        middles = middles[spread.round().astype(np.int64)]
    return middles


@dataclass(frozen=True)
class _Split:
    """Leaves of every possible split of one node of each member, and the best split of each."""

    best: Indices
    low: Floats
    high: Floats

    @classmethod
    def of(
        cls,
        total: tuple[Floats, Floats],
        above: tuple[Floats, Floats],
        signs: Floats,
    ) -> _Split:
        """Find the splits that lower the squared error most.

        Args:
            total:
                Sum of the weighted residuals of each node, ``[members, 1]``, and of the weights.
            above:
                The same of the part above each step, ``[members, steps]``.
            signs:
                Sign of the change that is allowed at each step; 0 for both, ``[steps]``.

        Reference:
            Chen and Guestrin (2016), "XGBoost: A Scalable Tree Boosting System", equations 5
            and 7 with the squared error.
        """
        below = total[0] - above[0]
        low = below / (total[1] - above[1] + _PENALTY)
        high = above[0] / (above[1] + _PENALTY)
        gain = below * low + above[0] * high
        if signs.any():
            gain[(high - low) * signs < 0] = -1.0
        best = gain.argmax(axis=1)
        rows = np.arange(len(best))
        return cls(best, low[rows, best], high[rows, best])

    def halves(self) -> tuple[_Split, _Split]:
        """The splits of the first half of the nodes, and those of the second."""
        half = len(self.best) // 2
        return (
            _Split(self.best[:half], self.low[:half], self.high[:half]),
            _Split(self.best[half:], self.low[half:], self.high[half:]),
        )


class Forest:
    """Boosted trees of all members, as sums over single steps and over pairs of steps.

    With z = 1 above a step and 0 below, a tree is ``a + b z1 + c z2 + d z1 z2 + e z1 z3``.

    Args:
        steps:
            Places to split at.
        features:
            Features of the measurements, ``[n, columns]``.
        values:
            Targets, ``[n]``.
        weights:
            Weight of each measurement for each member, ``[members, n]``.
        signs:
            Sign of the change that is allowed along each feature, ``[columns]``.
    """

    def __init__(
        self, steps: Steps, features: Features, values: Floats, weights: Floats, signs: Floats
    ) -> None:
        above = steps.above(features)
        members, count = len(weights), len(steps.columns)
        self._above, self._above_by_step = above, np.ascontiguousarray(above.T)
        self._values, self._weights, self._signs = values, weights, signs[steps.columns]
        self._weights_above, self._weight_sums = weights @ above, _sums(weights)
        self._rows = np.arange(members)
        self.constant: Floats = weights @ values / weights.sum(axis=1)
        """Value of each member below all steps, ``[members]``."""
        self.single = np.zeros((members, count))
        """What each step adds, ``[members, steps]``."""
        self.pairs = np.zeros((members, count, count))
        """What two steps add together, ``[members, steps, steps]``; not symmetric."""
        self.fitted: Floats = np.repeat(self.constant[:, None], len(values), axis=1)
        """Prediction of each measurement, ``[members, n]``."""

    def add_tree(self) -> None:
        """Add a tree to every member."""
        residuals = self._weights * (self._values - self.fitted)
        weights_above = self._weights_above
        all_ = _sums(residuals), self._weight_sums
        above = residuals @ self._above, weights_above
        root = _Split.of(all_, above, self._signs)
        side = self._above_by_step[root.best]
        upper = (residuals * side) @ self._above, (self._weights * side) @ self._above
        in_upper = tuple(sums[self._rows, root.best][:, None] for sums in above)
        # Both sides of the root at once, the lower ones first: half the calls of NumPy.
        left, right = _Split.of(
            (
                np.concatenate([all_[0] - in_upper[0], in_upper[0]]),
                np.concatenate([all_[1] - in_upper[1], in_upper[1]]),
            ),
            (
                np.concatenate([above[0] - upper[0], upper[0]]),
                np.concatenate([above[1] - upper[1], upper[1]]),
            ),
            self._signs,
        ).halves()
        self._add(root, left, right, side)

    def _add(self, root: _Split, left: _Split, right: _Split, side: Floats) -> None:
        """Add the leaves, none of which may cross the middle of a root that is monotone."""
        sign, middle = self._signs[root.best], (root.low + root.high) / 2
        low, low_step = _bounded(left, middle, -sign)
        high, high_step = _bounded(right, middle, sign)
        rows = self._rows
        self.fitted += np.where(
            side > 0,
            high[:, None] + self._above_by_step[right.best] * high_step[:, None],
            low[:, None] + self._above_by_step[left.best] * low_step[:, None],
        )
        self.constant += low
        self.single[rows, root.best] += high - low
        self.single[rows, left.best] += low_step
        self.pairs[rows, root.best, left.best] -= low_step
        self.pairs[rows, root.best, right.best] += high_step


def _sums(rows: Floats) -> Floats:
    total: Floats = rows.sum(axis=1, keepdims=True)
    return total


def _bounded(split: _Split, middle: Floats, sign: Floats) -> tuple[Floats, Floats]:
    """Lower leaf and step to the upper one, shrunken, on one side of a bound.

    With the sign 1 the leaves stay above the middle, with -1 below it, with 0 they are free.
    """
    floor = np.where(sign > 0, middle, -np.inf)
    ceiling = np.where(sign < 0, middle, np.inf)
    low, high = np.clip(split.low, floor, ceiling), np.clip(split.high, floor, ceiling)
    return _SHRINKAGE * low, _SHRINKAGE * (high - low)


class PairTables:
    """A forest as one table for each pair of features, and one for each feature.

    Any configuration is then a sum of one row of each table, however many trees there are.
    """

    def __init__(self, steps: Steps, forest: Forest) -> None:
        self._steps, self._constant = steps, forest.constant
        features = range(len(steps.starts) - 1)
        parts = [slice(steps.starts[j], steps.starts[j + 1]) for j in features]
        # Row l of a ladder tells which steps of a feature its level l is above.
        ladders = [
            np.tri(part.stop - part.start + 1, part.stop - part.start, -1) for part in parts
        ]
        both = forest.pairs + forest.pairs.transpose(0, 2, 1)
        self._pairs: list[tuple[int, int]] = []
        tables = []
        for j in features:
            own = forest.pairs[:, parts[j], parts[j]]
            table = np.einsum("ls,bst,lt->lb", ladders[j], own, ladders[j])
            self._pairs.append((j, j))
            tables.append(table + ladders[j] @ forest.single[:, parts[j]].T)
            for k in features[j + 1 :]:
                together = both[:, parts[j], parts[k]]
                if together.any():
                    table = ladders[j] @ together @ ladders[k].T
                    self._pairs.append((j, k))
                    tables.append(table.reshape(len(together), -1).T)
        self._widths = [len(ladder) for ladder in ladders]
        self._starts = np.cumsum([0, *map(len, tables)])[:-1]
        self._table: Floats = np.concatenate(tables)

    def members(self, features: Features) -> Floats:
        """Predictions of all members, ``[n, members]``."""
        predictions: Floats = self._rows_of(features) @ self._table + self._constant
        return predictions

    def mean(self, features: Features) -> Floats:
        """Mean of the members, ``[n]``, in a fraction of the time."""
        mean: Floats = self._rows_of(features) @ self._table.mean(axis=1) + self._constant.mean()
        return mean

    def _rows_of(self, features: Features) -> csr_array:
        """Matrix that sums the rows of the tables for each configuration."""
        levels = self._steps.levels(features)
        rows = np.empty((len(features), len(self._pairs)), dtype=np.int64)
        for column, ((j, k), start) in enumerate(zip(self._pairs, self._starts, strict=True)):
            level = levels[j] if j == k else levels[j] * self._widths[k] + levels[k]
            rows[:, column] = start + level
        ends = np.arange(len(rows) + 1) * rows.shape[1]
        return csr_array(
            (np.ones(rows.size), rows.ravel(), ends), shape=(len(rows), len(self._table))
        )
