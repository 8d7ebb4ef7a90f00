"""What a trial must keep to: a drop of the metric, or a budget of bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sgquant_optuna.study.byte_sizes import megabytes
from sgquant_optuna.study.metric_words import MetricWords
from sgquant_optuna.study.trial_result import TrialScore

NEAR_BUDGET = 0.01
"""Share of a budget that an assignment may leave unused and still count as using it up."""
_NOISE = 0.001  # of the metric's scale, that the drops of two equally good trials may differ by
_FAR = 100.0  # times its scale, that no useful trial of an error without an end drops by
_PERCENT = "%"


def plain_drop(given: float | str, *, what: str = "max_drop") -> float | str:
    """Return a limit of the drop in its plain form: a number, or a text such as ``"2%"``.

    Args:
        given:
            Number in the unit of the metric, or a percentage of the full-precision value.
        what:
            Name of the option, for the error.

    Raises:
        ValueError:
            If it is neither, or negative.
    """
    share = share_of(given)
    text = given.strip().removesuffix(_PERCENT) if isinstance(given, str) else given
    try:
        value = float(text) if share is None else share
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(
            f"{what}: expected a drop >= 0 in the unit of the metric (percentage points for "
            f"accuracy), or a share of the full-precision value such as '2%', got {given!r}"
        )
    return value if share is None else f"{value:g}{_PERCENT}"


def share_of(given: float | str) -> float | None:
    """Return the percentage of a relative limit; ``None`` if a limit is in the metric's unit."""
    if not isinstance(given, str) or not given.strip().endswith(_PERCENT):
        return None
    try:
        return float(given.strip().removesuffix(_PERCENT))
    except ValueError:
        return math.nan


@dataclass(frozen=True)
class Limit:
    """The limit of a study, and the order that it puts trials in.

    Args:
        max_drop:
            Largest feasible bound of the drop, in the unit of the metric; ``None`` with a budget.
        budget_bytes:
            Largest feasible memory by the honest accounting, in bytes; ``None`` without one.
        share:
            Percentage of the full-precision value that was asked for; ``None`` if ``max_drop``
            was given in the unit of the metric.
        metric:
            Metric that drops are of.
        full_precision:
            Value of full precision.
    """

    max_drop: float | None = None
    budget_bytes: float | None = None
    share: float | None = None
    metric: MetricWords = MetricWords()
    full_precision: float = 0.0

    @classmethod
    def of_drop(cls, given: float | str, metric: MetricWords, full_precision: float) -> Limit:
        """Return the limit of a drop that is given as a number or as a share such as ``"2%"``.

        Raises:
            ValueError:
                If it is neither, or a share of a full-precision value of 0.
        """
        plain = plain_drop(given)
        share = share_of(plain)
        if share is None:
            return cls(float(plain), metric=metric, full_precision=full_precision)
        if not full_precision:
            raise ValueError(
                f"max_drop: expected a number in the unit of the metric, got {plain}: the "
                f"full-precision {metric.name} is 0, of which every share is 0"
            )
        drop = share / 100 * abs(full_precision)
        return cls(drop, share=share, metric=metric, full_precision=full_precision)

    @classmethod
    def asked(
        cls,
        *,
        max_drop: float | str | None,
        budget_bytes: float | None,
        metric: MetricWords,
        full_precision: float,
    ) -> Limit:
        """Return the limit of a drop, or that of a budget, which wins where both are given.

        Raises:
            ValueError:
                If the drop is neither a number nor a share, or there is neither limit.
        """
        if budget_bytes is not None:
            return cls(budget_bytes=budget_bytes, metric=metric, full_precision=full_precision)
        if max_drop is None:
            raise ValueError(
                "limit: expected exactly one of budget_bytes and max_drop, got neither"
            )
        return cls.of_drop(max_drop, metric, full_precision)

    @property
    def largest_drop(self) -> float:
        """Largest feasible bound of the drop, of a limit that has one."""
        assert self.max_drop is not None
        return self.max_drop

    @property
    def noise(self) -> float:
        """Difference of drops that tells no two trials apart."""
        return _NOISE * self.metric.scale(self.full_precision)

    def is_feasible(self, score: TrialScore) -> bool:
        """Tell whether a trial is within the limit."""
        if self.budget_bytes is not None:
            return score.memory_bytes <= self.budget_bytes
        return score.is_feasible(self.largest_drop)

    def violation(self, score: TrialScore) -> float:
        """Return by how much a trial is above: in the metric's unit, or a share of the budget."""
        if self.budget_bytes is not None:
            return score.memory_bytes / self.budget_bytes - 1
        return score.violation(self.largest_drop)

    def penalty(self, score: TrialScore) -> float:
        """Return the value of a trial above a budget: a drop worse than that of any other.

        A percentage drops by 100 points at most. Other metrics may drop without an end, so that
        it is worse than any trial of use, and than the trial itself.
        """
        scale = self.metric.scale(self.full_precision)
        worst = scale if self.metric.is_percentage else _FAR * scale
        return max(worst, score.expected_drop) * (1 + self.violation(score))

    def badness(self, score: TrialScore) -> tuple[float, float, float]:
        """Return what orders trials: what is above the limit, then what the study minimises.

        A trial that leaves a part of a budget unused has to be better by more than the noise of a
        measurement: more bits rarely cost accuracy.
        """
        off = max(self.violation(score), 0.0)
        if self.budget_bytes is not None:
            is_near = score.memory_bytes >= (1 - NEAR_BUDGET) * self.budget_bytes
            drop = score.estimated_drop + (0.0 if is_near else self.noise)
            return off, drop, score.memory_bytes
        return off, score.memory_bytes, score.estimated_drop

    def describe_drop(self) -> str:
        """Return the largest drop in words: ``"0.5 points"``, ``"2 % of 81.20 % = 1.62 points"``.

        A share is of the value, not of points, so both are told.
        """
        if self.share is None:
            return self.metric.limit(self.largest_drop)
        full, drop = self.metric.value(self.full_precision), self.metric.drop(self.largest_drop)
        return f"{self.share:g} % of {full} = {drop}"

    def describe_best(self, score: TrialScore) -> str:
        """Return what is best about a feasible trial, in a few words."""
        if self.budget_bytes is not None:
            return f"drop {self.metric.drop(score.estimated_drop)}"
        return f"saving {score.saving:.1f}x"

    def describe_violation(self, score: TrialScore) -> str:
        """Return by how much a trial is above the limit, in a few words."""
        if self.budget_bytes is not None:
            excess = score.memory_bytes - self.budget_bytes
            return f"{megabytes(excess)} above the budget"
        return f"{self.metric.drop(self.violation(score))} above the limit"

    def to_json(self) -> dict[str, float | None]:
        """Return all that tables of JSON show of it, ``None`` where it is not given."""
        return {
            "max_drop": self.max_drop,
            "budget_bytes": self.budget_bytes,
            "max_drop_share": self.share,
        }

    def to_dict(self) -> dict[str, float | str]:
        """Return what is given, by its name: a budget, or a drop, and the share that it is."""
        if self.budget_bytes is not None:
            return {"budget_bytes": self.budget_bytes}
        share = {} if self.share is None else {"max_drop_share": self.share}
        return {"max_drop": self.largest_drop, **share}
