"""What one round has to solve: the targets to learn, the objective that is known, the grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from optuna.study import StudyDirection

from sgquant_optuna.sampler.history import Record
from sgquant_optuna.sampler.known_objective import KnownObjective
from sgquant_optuna.sampler.space import FiniteSpace, Indices
from sgquant_optuna.sampler.training import (
    Floats,
    Target,
    constraint_targets,
    objective_target,
)


def sign_of(direction: StudyDirection) -> float:
    """Factor that turns an objective into one to minimise."""
    return -1.0 if direction == StudyDirection.MAXIMIZE else 1.0


class Problem:
    """The measurements of one round's opening, with every objective minimised.

    Args:
        space:
            The grid.
        records:
            The complete trials to learn from.
        directions:
            Directions of the study.
        known:
            The objective that is computed, if any.
    """

    def __init__(
        self,
        space: FiniteSpace,
        records: Sequence[Record],
        directions: Sequence[StudyDirection],
        known: KnownObjective | None,
    ) -> None:
        """Collect the targets."""
        self.space = space
        self.signs = [sign_of(d) for d in directions]
        self._known = known
        self.known_objective = known.objective if known is not None else None
        self.objectives: list[Target | None] = [
            None if j == self.known_objective else objective_target(space, records, j, sign)
            for j, sign in enumerate(self.signs)
        ]
        self.constraints = constraint_targets(space, records)
        self.measured = space.distinct(
            np.array([r.index for r in records], dtype=np.int64).reshape(-1, len(space.names))
        )

    @property
    def targets(self) -> list[Target]:
        """Everything that a cost model has to learn."""
        return [t for t in self.objectives if t is not None] + self.constraints

    def known_values(self, indices: Indices) -> Floats:
        """Compute the known objective, signed so that lower is better, ``[n]``."""
        assert self._known is not None
        return self._known.values(indices)
