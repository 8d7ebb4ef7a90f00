"""Arrays to fit a cost model on: repeated measurements joined, every objective minimised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sgquant_optuna.sampler.history import Record
from sgquant_optuna.sampler.space import Features, FiniteSpace, Indices

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """One measured quantity to learn, lower is better.

    Args:
        name:
            ``objective 0`` or ``constraint <name>``.
        indices:
            Distinct configurations, ``[n, parameters]``.
        features:
            The same, encoded, ``[n, columns]``.
        values:
            Mean of the measurements of each, ``[n]``.
        counts:
            Number of measurements of each, ``[n]``.
    """

    name: str
    indices: Indices
    features: Features
    values: Floats
    counts: Floats


def objective_target(
    space: FiniteSpace, records: Sequence[Record], objective: int, sign: float
) -> Target | None:
    """Collect one objective, times ``sign`` (-1 to maximise); ``None`` without measurements."""
    rows = [r for r in records if objective < len(r.values)]
    values = [sign * r.values[objective] for r in rows]
    return _target_of_records(space, f"objective {objective}", rows, values)


def constraint_targets(space: FiniteSpace, records: Sequence[Record]) -> list[Target]:
    """Collect every constraint that any trial recorded, in order of their names."""
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
            The grid.
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
    # Divided first, so that values near the largest float do not overflow in the sum.
    means = np.bincount(inverse, weights=values / repeats[inverse])
    indices = rows[first]
    return Target(name, indices, space.features(indices), np.asarray(means), repeats)


def _target_of_records(
    space: FiniteSpace, name: str, records: Sequence[Record], values: Sequence[float]
) -> Target | None:
    if not records:
        return None
    rows = np.array([r.index for r in records], dtype=np.int64)
    return target_of(space, name, rows, np.array(values, dtype=np.float64))
