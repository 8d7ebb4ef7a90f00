"""A constraint that is computed from the parameters: no trial is spent on what breaks it.

Candidates that break it are brought within it. Where it is a budget that wants to be used, others
are filled up to it, because more of a resource rarely makes a result worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sgquant_optuna.sampler.candidates import moved_positions
from sgquant_optuna.sampler.known_objective import KnownFunction
from sgquant_optuna.sampler.space import FiniteSpace, Floats, Index, Indices

_MAX_LISTED = 2**17  # configurations of a grid that is listed, to find all that hold
_SWEEPS = 10
_MAX_POSITIONS = 256  # of one parameter that are tried for the least value
_STARTS = 256
_MOVES = 4  # tries for each parameter, to bring a configuration within the limit and to raise it
_SWAPS = 100  # further tries to come near the limit by changing several parameters
_UNTABULATED_MOVES = 20  # where each try calls the user's function


class KnownConstraint:
    """A constraint of a study, computed on a grid: it holds where its function is 0 or below.

    Args:
        function:
            Function of the parameters.
        space:
            Grid of the configurations.
        slack:
            Distance below 0 within which a configuration uses up what the constraint allows;
            ``None`` if there is nothing to use up.
        name:
            Name under which trials record the constraint, if they do; it is not learned.

    Raises:
        ValueError:
            If no configuration satisfies it.
    """

    def __init__(
        self,
        function: KnownFunction,
        space: FiniteSpace,
        *,
        slack: float | None = None,
        name: str | None = None,
    ) -> None:
        """Find the configuration with the least value."""
        self.slack, self.name = slack, name
        self._function, self.space = function, space
        self._holding: dict[Index, bool] = {}
        self._least = self.least({})
        value = float(self.values(self._least[None])[0])
        if value > 0:
            raise ValueError(
                f"known_constraint: expected a configuration with 0 or less, the least found is "
                f"{value:g}; allow more, or smaller values of the parameters"
            )

    def values(self, indices: Indices) -> Floats:
        """Compute the constraint, ``[n]``."""
        values = self._function.values(indices)
        # What uses up the constraint to the last bit must not break it by the rounding of a sum.
        close = self._function.is_rounded(values, 0.0)
        if close.any():
            values[close] = self._function.called(indices[close])
        return values

    def holds(self, indices: Indices) -> npt.NDArray[np.bool_]:
        """Tell where the constraint holds, ``[n]``."""
        held: npt.NDArray[np.bool_] = self.values(indices) <= 0
        return held

    def holds_for(self, index: Index) -> bool:
        """Tell whether the constraint holds for one configuration."""
        if index not in self._holding:
            self._holding[index] = bool(self.holds(np.array([index], dtype=np.int64))[0])
        return self._holding[index]

    def least(self, fixed: Mapping[str, int]) -> Indices:
        """Return the configuration with the least value, by coordinate descent, ``[parameters]``.

        Args:
            fixed:
                Positions of enqueued parameters, which stay.
        """
        rows = self.space.random(np.random.default_rng(0), _STARTS)
        rows[0] = 0
        for name, position in fixed.items():
            rows[:, self.space.names.index(name)] = position
        row: Indices = rows[np.argmin(self.values(rows))]
        for _ in range(_SWEEPS):
            before = row
            for column in self._free(fixed):
                count = int(self.space.cardinalities[column])
                tried = np.linspace(0, count - 1, min(count, _MAX_POSITIONS)).astype(np.int64)
                changed = np.repeat(row[None], len(tried), axis=0)
                changed[:, column] = tried
                row = changed[np.argmin(self.values(changed))]
            if np.array_equal(row, before):
                break
        return row

    def within(
        self, indices: Indices, rng: np.random.Generator, fixed: Mapping[str, int]
    ) -> Indices:
        """Bring configurations within the limit: random parameters go towards the least value.

        Args:
            indices:
                Configurations, ``[n, parameters]``; those that hold stay as they are.
            rng:
                Source of randomness.
            fixed:
                Positions of enqueued parameters, which stay.

        Returns:
            One configuration for each, ``[n, parameters]``. Where the fixed parameters leave none
            that holds, it is the one with the least value.
        """
        rows = indices.copy()
        least = self.least(fixed) if fixed else self._least
        broken = np.flatnonzero(~self.holds(rows))
        for _ in range(_MOVES * len(least)):
            if not len(broken):
                break
            part, at = rows[broken], np.arange(len(broken))
            columns = (rng.random(part.shape) * (part != least)).argmax(axis=1)
            gap = part[at, columns] - least[columns]
            share = np.where(self.space.is_ordered[columns], rng.random(len(part)), 0.0)
            part[at, columns] = least[columns] + np.trunc(gap * share).astype(np.int64)
            rows[broken] = part
            broken = broken[~self.holds(part)]
        rows[broken] = least
        return rows

    def filled(
        self, indices: Indices, rng: np.random.Generator, fixed: Mapping[str, int]
    ) -> Indices:
        """Use up what the constraint allows: raise parameters at random, as far as they fit.

        Where no single parameter fits any more, one is raised while another is lowered.

        Args:
            indices:
                Configurations that hold, ``[n, parameters]``.
            rng:
                Source of randomness.
            fixed:
                Positions of enqueued parameters, which stay.

        Returns:
            One configuration for each, within the limit and not farther from it,
            ``[n, parameters]``.
        """
        rows, free = indices.copy(), self._free(fixed)
        if self.slack is None or not len(free):
            return rows
        values = self.values(rows)
        raises, swaps = _MOVES * len(free), _SWAPS
        if not self._function.is_tabulated:
            raises, swaps = _UNTABULATED_MOVES, 0
        for move in range(raises + swaps):
            short = np.flatnonzero(values < -self.slack)
            if not len(short):
                break
            changes = 1 if move < raises else 2 + move % 2
            tried, at = rows[short], np.arange(len(short))
            for _ in range(changes):
                columns = free[rng.integers(len(free), size=len(short))]
                tried[at, columns] = moved_positions(self.space, rng, tried[at, columns], columns)
            reached = self.values(tried)
            better = (reached <= 0) & (reached > values[short])
            rows[short[better]], values[short[better]] = tried[better], reached[better]
        return rows

    def listed(self, rng: np.random.Generator, count: int) -> Indices:
        """List configurations that hold, those that use up the most first, ``[n, parameters]``.

        Args:
            rng:
                Source of randomness.
            count:
                Largest number of them.

        Returns:
            The configurations; none where the grid is too large to be listed.
        """
        rows = rng.permutation(self._every)
        if self.slack is not None and len(rows):
            rows = rows[np.argsort(~self.uses_it_up(rows), kind="stable")]
        return rows[:count]

    @cached_property
    def _every(self) -> Indices:
        """All configurations that hold, if the grid is small enough."""
        if not self._function.is_tabulated or self.space.size > _MAX_LISTED:
            return np.empty((0, len(self.space.names)), dtype=np.int64)
        every = self.space.all()
        return every[self.holds(every)]

    def uses_it_up(self, indices: Indices) -> npt.NDArray[np.bool_]:
        """Tell which of some configurations are as near to the limit as the nearest, ``[n]``."""
        assert self.slack is not None
        values = self.values(indices)
        nearest = float(np.max(values, initial=-np.inf, where=values <= 0))
        near: npt.NDArray[np.bool_] = (values <= 0) & (values >= nearest - self.slack)
        return near

    def is_full(self, indices: Indices) -> npt.NDArray[np.bool_]:
        """Tell where no single parameter can be raised within the limit, ``[n]``.

        Of a function that is no sum over parameters this is not known, and nowhere so.
        """
        full: npt.NDArray[np.bool_] = (
            self.values(indices) + self._function.least_raises(indices) > 0
        )
        return full

    def _free(self, fixed: Mapping[str, int]) -> Indices:
        return np.array(
            [j for j, name in enumerate(self.space.names) if name not in fixed], dtype=np.int64
        )
