"""What is computed from the parameters, fast enough for thousands of candidates.

Memory is usually a sum of one term for each parameter. Such a function is tabulated once; any
other function is called once for each candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sgquant_optuna.sampler.space import FiniteSpace, Floats, Index, Indices

_CHECKS = 64  # random configurations on which the table must agree with the function
_RELATIVE_TOLERANCE = 1e-9
_MAX_TABULATED = 2000  # calls up to which a table is worth them: one for each value
_MAX_REMEMBERED = 200_000


class KnownFunction:
    """A function of the parameters, computed on a grid.

    Args:
        function:
            Function that computes a number from the parameters.
        space:
            Grid of the configurations.
        sign:
            Factor of the function: -1 turns one to maximise into one to minimise.
        defaults:
            Parameters with a single value, which are not part of the grid.
    """

    def __init__(
        self,
        function: Callable[[dict[str, Any]], float],
        space: FiniteSpace,
        *,
        sign: float = 1.0,
        defaults: Mapping[str, Any],
    ) -> None:
        """Tabulate the function if it is a sum over parameters."""
        self._function, self._space = function, space
        self._sign, self._defaults = sign, dict(defaults)
        self._remembered: dict[Index, float] = {}
        self._table = self._tabulate()

    @property
    def is_tabulated(self) -> bool:
        """Whether the function is a sum over parameters, so that a value costs no call."""
        return self._table is not None

    def values(self, indices: Indices) -> Floats:
        """Compute the function, ``[n]``; lower is better, and NaN counts as the worst."""
        if self._table is not None:
            return self._sum(self._table, indices)
        return self.called(indices)

    def least_raises(self, indices: Indices) -> Floats:
        """Compute the least amount by which one parameter alone can raise the function, ``[n]``.

        It is 0 where the function is no sum over parameters, and infinite at its largest value.
        """
        if self._table is None:
            return np.zeros(len(indices))
        raises = np.full(len(indices), np.inf)
        for j, terms in enumerate(self._table):
            steps = terms[None, :] - terms[:, None]  # from each value to each other one
            least = np.min(steps, axis=1, initial=np.inf, where=steps > 0)
            raises = np.minimum(raises, least[indices[:, j]])
        return raises

    def is_rounded(self, values: Floats, border: float) -> npt.NDArray[np.bool_]:
        """Tell which values are so near a border that rounding may move them over it, ``[n]``."""
        if self._table is None:
            return np.zeros(len(values), dtype=np.bool_)
        near: npt.NDArray[np.bool_] = np.abs(values - border) <= _RELATIVE_TOLERANCE * self._scale
        return near

    def called(self, indices: Indices) -> Floats:
        """Compute the function as :meth:`values` does, by calling it, ``[n]``."""
        if len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.clear()
        values = np.array([self._value(row) for row in map(tuple, indices.tolist())])
        return np.where(np.isnan(values), np.inf, values)

    def _value(self, index: Index) -> float:
        value = self._remembered.get(index)
        if value is None:
            params = {**self._defaults, **self._space.params_of(index)}
            value = self._remembered[index] = self._sign * float(self._function(params))
        return value

    def _tabulate(self) -> list[Floats] | None:
        """Terms of each parameter, the first with the constant; ``None`` if it is not a sum."""
        if self._space.cardinalities.sum() > _MAX_TABULATED:
            return None
        origin = (0,) * len(self._space.names)
        constant = self._value(origin)
        table = []
        for j, cardinality in enumerate(self._space.cardinalities):
            rows = [(*origin[:j], i, *origin[j + 1 :]) for i in range(cardinality)]
            table.append(np.array([self._value(row) for row in rows]) - constant)
        table[0] = table[0] + constant
        checks = self._space.random(np.random.default_rng(0), _CHECKS)
        exact = np.array([self._value(row) for row in map(tuple, checks.tolist())])
        self._scale = scale = float(np.max(np.abs(exact)))
        if not np.isfinite(scale):
            return None
        difference = np.max(np.abs(self._sum(table, checks) - exact))
        return table if difference <= _RELATIVE_TOLERANCE * scale else None

    @staticmethod
    def _sum(table: list[Floats], indices: Indices) -> Floats:
        total = np.zeros(len(indices))
        for j, terms in enumerate(table):
            total += terms[indices[:, j]]
        return total


class KnownObjective(KnownFunction):
    """One objective of a study, computed on a grid.

    Args:
        function:
            Function that computes the objective from the parameters, in the study's direction.
        space:
            Grid of the configurations.
        objective:
            Position of the objective in the study.
        sign:
            1 to minimise, -1 to maximise.
        defaults:
            Parameters with a single value, which are not part of the grid.
    """

    def __init__(
        self,
        function: Callable[[dict[str, Any]], float],
        space: FiniteSpace,
        *,
        objective: int,
        sign: float,
        defaults: Mapping[str, Any],
    ) -> None:
        """Tabulate the function if it is a sum over parameters."""
        super().__init__(function, space, sign=sign, defaults=defaults)
        self.objective = objective
