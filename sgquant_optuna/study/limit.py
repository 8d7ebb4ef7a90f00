"""What a trial must keep to: an accuracy drop, or a budget of bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sgquant_optuna.study.byte_sizes import megabytes
from sgquant_optuna.study.trial_result import TrialScore

NEAR_BUDGET = 0.01
"""Share of a budget that an assignment may leave unused and still count as using it up."""
_NOISE = 0.1  # percentage points that the drops of two equally good trials may differ by


@dataclass(frozen=True)
class Limit:
    """The limit of a study, and the order that it puts trials in.

    Args:
        max_drop:
            Largest feasible bound of the drop, in percentage points; ``None`` with a budget.
        budget_bytes:
            Largest feasible memory by the honest accounting, in bytes; ``None`` without one.
    """

    max_drop: float | None = None
    budget_bytes: float | None = None

    def is_feasible(self, score: TrialScore) -> bool:
        """Tell whether a trial is within the limit."""
        if self.budget_bytes is not None:
            return score.memory_bytes <= self.budget_bytes
        return score.is_feasible(self._max_drop)

    def violation(self, score: TrialScore) -> float:
        """Return by how much a trial is above: percentage points, or a share of the budget."""
        if self.budget_bytes is not None:
            return score.memory_bytes / self.budget_bytes - 1
        return score.violation(self._max_drop)

    def badness(self, score: TrialScore) -> tuple[float, float, float]:
        """Return what orders trials: what is above the limit, then what the study minimises.

        A trial that leaves a part of a budget unused has to be better by more than the noise of a
        measurement: more bits rarely cost accuracy.
        """
        off = max(self.violation(score), 0.0)
        if self.budget_bytes is not None:
            is_near = score.memory_bytes >= (1 - NEAR_BUDGET) * self.budget_bytes
            return off, score.estimated_drop + (0.0 if is_near else _NOISE), score.memory_bytes
        return off, score.memory_bytes, score.estimated_drop

    def describe_best(self, score: TrialScore) -> str:
        """Return what is best about a feasible trial, in a few words."""
        if self.budget_bytes is not None:
            return f"drop {score.estimated_drop:.2f} points"
        return f"saving {score.saving:.1f}x"

    def describe_violation(self, score: TrialScore) -> str:
        """Return by how much a trial is above the limit, in a few words."""
        if self.budget_bytes is not None:
            excess = score.memory_bytes - self.budget_bytes
            return f"{megabytes(excess)} above the budget"
        return f"{score.violation(self._max_drop):.2f} points above the limit"

    def to_dict(self) -> dict[str, float]:
        """Return the one of both that is given, by its name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def _max_drop(self) -> float:
        assert self.max_drop is not None
        return self.max_drop
