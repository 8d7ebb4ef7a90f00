"""The problem of one round: the grid, the targets to learn and the objective that is known.

Repeated measurements of a configuration are joined, and every objective is minimised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from optuna.study import StudyDirection

from sgquant_optuna.sampler.history import Record
from sgquant_optuna.sampler.known_constraint import KnownConstraint
from sgquant_optuna.sampler.known_objective import KnownObjective
from sgquant_optuna.sampler.space import Features, FiniteSpace, Flags, Floats, Indices


def sign_of(direction: StudyDirection) -> float:
    """Return the factor that turns an objective into one to minimise."""
    return -1.0 if direction == StudyDirection.MAXIMIZE else 1.0


@dataclass(frozen=True)
class Target:
    """A measured quantity to learn; lower is better.

    Args:
        name:
            Name of the quantity: ``objective 0`` or ``constraint <name>``.
        indices:
            Distinct configurations, ``[n, parameters]``.
        features:
            Features of the configurations, ``[n, columns]``.
        values:
            Mean of the measurements of each, ``[n]``.
        counts:
            Number of measurements of each, ``[n]``.
        ordered:
            Whether a feature is an ordered parameter, ``[columns]``.
    """

    name: str
    indices: Indices
    features: Features
    values: Floats
    counts: Floats
    ordered: Flags


class Problem:
    """The measurements that one round learns from, with every objective minimised.

    Args:
        space:
            Grid of the configurations.
        records:
            Complete trials to learn from.
        directions:
            Directions of the study.
        known:
            Objective that is computed, if there is one.
        known_constraint:
            Constraint that is computed, if there is one. Trials that break it are not learned
            from: their values may be penalties.
    """

    def __init__(
        self,
        space: FiniteSpace,
        records: Sequence[Record],
        directions: Sequence[StudyDirection],
        known: KnownObjective | None,
        known_constraint: KnownConstraint | None = None,
    ) -> None:
        """Collect the targets."""
        self.space = space
        self.known_constraint = known_constraint
        if known_constraint is not None:
            records = [r for r in records if r.index and known_constraint.holds_for(r.index)]
        self.signs = [sign_of(d) for d in directions]
        self._known = known
        self.known_objective = known.objective if known is not None else None
        self.objectives: list[Target | None] = [
            None if j == self.known_objective else objective_target(space, records, j, sign)
            for j, sign in enumerate(self.signs)
        ]
        computed = None if known_constraint is None else f"constraint {known_constraint.name}"
        self.constraints = [
            target for target in constraint_targets(space, records) if target.name != computed
        ]
        self.measured = space.distinct(
            np.array([r.index for r in records], dtype=np.int64).reshape(-1, len(space.names))
        )

    @property
    def targets(self) -> list[Target]:
        """All targets that a cost model has to learn."""
        return [t for t in self.objectives if t is not None] + self.constraints

    def known_values(self, indices: Indices) -> Floats:
        """Compute the known objective, signed so that lower is better, ``[n]``."""
        assert self._known is not None
        return self._known.values(indices)


def objective_target(
    space: FiniteSpace, records: Sequence[Record], objective: int, sign: float
) -> Target | None:
    """Collect one objective, times ``sign`` (-1 to maximise); ``None`` without measurements."""
    rows = [r for r in records if objective < len(r.values)]
    values = [sign * r.values[objective] for r in rows]
    return _target_of_records(space, f"objective {objective}", rows, values)


def constraint_targets(space: FiniteSpace, records: Sequence[Record]) -> list[Target]:
    """Collect every constraint that a trial recorded, in order of their names."""
    targets = []
    for name in sorted({name for r in records for name in r.constraints}):
        rows = [r for r in records if np.isfinite(r.constraints.get(name, np.nan))]
        values = [r.constraints[name] for r in rows]
        target = _target_of_records(space, f"constraint {name}", rows, values)
        if target is not None:
            targets.append(target)
    return targets


def target_of(space: FiniteSpace, name: str, rows: Indices, values: Floats) -> Target:
    """Join repeated measurements of a quantity.

    Args:
        space:
            Grid of the configurations.
        name:
            Name of the quantity.
        rows:
            Configuration of each measurement, ``[m, parameters]``, m > 0.
        values:
            Finite measurements, ``[m]``.

    Returns:
        The target.
    """
    _, first, inverse, counts = np.unique(
        space.codes(rows), return_index=True, return_inverse=True, return_counts=True
    )
    repeats: Floats = np.asarray(counts, dtype=np.float64)
    # Divided before they are summed, so that values near the largest float do not overflow.
    means = np.bincount(inverse, weights=values / repeats[inverse])
    indices = rows[first]
    return Target(
        name, indices, space.features(indices), np.asarray(means), repeats, space.ordered_columns
    )


def _target_of_records(
    space: FiniteSpace, name: str, records: Sequence[Record], values: Sequence[float]
) -> Target | None:
    if not records:
        return None
    rows = np.array([r.index for r in records], dtype=np.int64)
    return target_of(space, name, rows, np.array(values, dtype=np.float64))
