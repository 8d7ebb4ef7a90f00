"""The finite grid of a search space: configurations as index vectors and as features."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Index = tuple[int, ...]
"""A configuration: the position of each parameter's value, parameters in order of their names."""
Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.float64]
Codes = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]


def is_finite(distribution: BaseDistribution) -> bool:
    """Return whether a parameter takes finitely many values, so that the grid can hold it."""
    if isinstance(distribution, FloatDistribution):
        return distribution.step is not None
    return isinstance(distribution, CategoricalDistribution | IntDistribution)


def single_value(distribution: BaseDistribution) -> Any:
    """Return the value of a parameter that has only one."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return distribution.low


class FiniteSpace:
    """A grid over parameters that each take finitely many values.

    Numeric choices that ascend, as bit widths do, are treated as ordered, so that a categorical
    encoding is as good as an integer one. All other choices are one-hot encoded.

    Args:
        distributions:
            Distributions of the parameters; each must satisfy ``is_finite``.

    Raises:
        ValueError:
            If there is no parameter, or one with infinitely many values.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        """Number the values of every parameter."""
        if not distributions:
            raise ValueError("search space: expected at least one parameter, got none")
        self.names = sorted(distributions)
        self._dimensions = [_Dimension(name, distributions[name]) for name in self.names]
        self.cardinalities = np.array([d.cardinality for d in self._dimensions], dtype=np.int64)
        described = [[d.name, d.description] for d in self._dimensions]
        self.signature = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]
        ordered = [d.is_ordered for d in self._dimensions]
        self.is_ordered = np.array(ordered)
        strides = [math.prod(self.cardinalities[j + 1 :].tolist()) for j in range(len(ordered))]
        self._strides = np.array([stride % 2**64 for stride in strides], dtype=np.uint64)

    @property
    def ordered_columns(self) -> Flags:
        """Whether a column of the features is an ordered parameter, ``[columns]``."""
        widths = np.where(self.is_ordered, 1, self.cardinalities)
        return np.repeat(self.is_ordered, widths)

    @property
    def size(self) -> float:
        """Number of configurations (a float, because it may exceed any integer type)."""
        with np.errstate(over="ignore"):  # infinity will do
            return float(np.prod(self.cardinalities.astype(np.float64)))

    def index_of(self, params: Mapping[str, Any]) -> Index | None:
        """Return the configuration of ``params``, or ``None`` if it is not one of this grid."""
        index = []
        for dimension in self._dimensions:
            if dimension.name not in params:
                return None
            position = dimension.position_of(params[dimension.name])
            if position is None:
                return None
            index.append(position)
        return tuple(index)

    def position_of(self, name: str, value: Any) -> int | None:
        """Return the position of one parameter's value, or ``None`` if the grid lacks it."""
        return self._dimensions[self.names.index(name)].position_of(value)

    def is_of_kind(self, name: str, distribution: BaseDistribution) -> bool:
        """Return whether a parameter and a distribution are both categorical or both numeric."""
        own = self._dimensions[self.names.index(name)].distribution
        return isinstance(own, CategoricalDistribution) == isinstance(
            distribution, CategoricalDistribution
        )

    def value_at(self, name: str, position: int) -> Any:
        """Return one parameter's value at a position."""
        return self._dimensions[self.names.index(name)].value_at(position)

    def params_of(self, index: Index) -> dict[str, Any]:
        """Return a fresh dictionary of the parameters of a configuration."""
        return {d.name: d.value_at(i) for d, i in zip(self._dimensions, index, strict=True)}

    def features(self, indices: Indices) -> Features:
        """Encode configurations for a model.

        Args:
            indices:
                Configurations, ``[n, parameters]``.

        Returns:
            Features in ``[0, 1]``, ``[n, columns]``: one column for an ordered parameter (the
            logarithm of a positive number), one for each choice of any other.
        """
        columns = [d.features(indices[:, j]) for j, d in enumerate(self._dimensions)]
        return np.concatenate(columns, axis=1)

    def codes(self, indices: Indices) -> Codes:
        """Number configurations, ``[n]``; the numbers are unique on grids of less than 2**64."""
        codes: Codes = indices.astype(np.uint64) @ self._strides
        return codes

    def distinct(self, indices: Indices) -> Indices:
        """Drop repeated configurations and sort the others."""
        return indices[np.unique(self.codes(indices), return_index=True)[1]]

    def without(self, indices: Indices, excluded: Indices) -> Indices:
        """Drop the configurations that are among ``excluded``."""
        return indices[~np.isin(self.codes(indices), self.codes(excluded))]

    def random(self, rng: np.random.Generator, count: int) -> Indices:
        """Draw configurations independently, ``[count, parameters]``."""
        columns = [d.random(rng, count) for d in self._dimensions]
        return np.stack(columns, axis=1)

    def all(self) -> Indices:
        """List every configuration, ``[size, parameters]``; for small grids only."""
        grids = np.meshgrid(*[np.arange(c) for c in self.cardinalities], indexing="ij")
        return np.stack([g.ravel() for g in grids], axis=1).astype(np.int64)


class _Dimension:
    """One parameter of the grid."""

    def __init__(self, name: str, distribution: BaseDistribution) -> None:
        self.name = name
        self._low, self._step = 0.0, 1.0
        self._choices: tuple[Any, ...] | None = None
        self._is_log = False
        self.distribution = distribution
        if isinstance(distribution, CategoricalDistribution):
            self._choices = distribution.choices
            self.cardinality = len(distribution.choices)
            self.is_ordered = _ascends(distribution.choices)
            self._is_log = self.is_ordered and distribution.choices[0] > 0  # type: ignore[operator]
            self.description: Any = [repr(choice) for choice in distribution.choices]
            self._positions: dict[Any, int] = {}
            for position, choice in enumerate(distribution.choices):
                self._positions.setdefault(choice, position)
        elif is_finite(distribution):
            assert isinstance(distribution, IntDistribution | FloatDistribution)
            assert distribution.step is not None
            self._low, self._step = distribution.low, distribution.step
            self.cardinality = round((distribution.high - self._low) / self._step) + 1
            self.is_ordered = True
            self._is_log = distribution.log
            self.description = [distribution.low, distribution.high, distribution.step]
        else:
            raise ValueError(
                f"search space: expected finitely many values of {name!r}, got {distribution}"
            )

    def position_of(self, value: Any) -> int | None:
        try:
            if self._choices is not None:
                position = self._positions.get(value)
                if position is not None:
                    return position
            internal = self.distribution.to_internal_repr(value)
        except (ValueError, TypeError):
            return None
        if self._choices is not None:
            return int(internal)
        position = round((internal - self._low) / self._step)
        on_grid = math.isclose(
            self._low + position * self._step, internal, rel_tol=1e-9, abs_tol=1e-9 * self._step
        )
        return position if on_grid and 0 <= position < self.cardinality else None

    def value_at(self, position: int) -> Any:
        if self._choices is not None:
            return self._choices[position]
        value = self._low + position * self._step
        return int(value) if isinstance(self.distribution, IntDistribution) else float(value)

    def features(self, positions: Indices) -> Features:
        if not self.is_ordered:
            one_hot: Features = np.eye(self.cardinality)[positions]
            return one_hot
        scale = self._scale(np.array([0, self.cardinality - 1]))
        span = max(float(scale[1] - scale[0]), 1e-12)
        column: Features = ((self._scale(positions) - scale[0]) / span)[:, None]
        return column

    def random(self, rng: np.random.Generator, count: int) -> Indices:
        if self._choices is None and self._is_log:
            low, high = math.log(self._low - 0.5), math.log(self._low + self.cardinality - 0.5)
            values = np.exp(rng.uniform(low, high, size=count)) - self._low
            return np.clip(np.rint(values), 0, self.cardinality - 1).astype(np.int64)
        return rng.integers(self.cardinality, size=count)

    def _scale(self, positions: Indices) -> Features:
        if self._choices is not None:
            values = np.asarray(self._choices, dtype=np.float64)[positions]
        else:
            values = np.asarray(self._low + positions * self._step, dtype=np.float64)
        return np.asarray(np.log2(values)) if self._is_log else values


def _ascends(choices: tuple[Any, ...]) -> bool:
    """Return whether choices are numbers in strictly ascending order."""
    if any(isinstance(c, bool) or not isinstance(c, int | float) for c in choices):
        return False
    if not all(math.isfinite(c) for c in choices):
        return False
    return all(a < b for a, b in zip(choices, choices[1:], strict=False))
