"""Which trial of a study to take: the smallest that keeps the accuracy, or the nearest miss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import optuna
from optuna.trial import FrozenTrial, TrialState

from sgquant_optuna.exceptions import StudyNotFoundError
from sgquant_optuna.final_result import FinalResult

MEASURED_ATTRS = ("memory_bytes", "accuracy_drop")
"""User attributes that rank a trial."""


class Measured(Protocol):
    """A trial, or the row of a table about one."""

    @property
    def number(self) -> int:
        """Its number in the study."""

    @property
    def state(self) -> TrialState:
        """Its state."""

    @property
    def user_attrs(self) -> Mapping[str, Any]:
        """With those of ``MEASURED_ATTRS`` if our objective finished it."""


_Trial = TypeVar("_Trial", bound=Measured)


def is_measured(trial: Measured) -> bool:
    """Tell whether our objective finished a trial."""
    return trial.state == TrialState.COMPLETE and "memory_bytes" in trial.user_attrs


def rank(trials: Sequence[_Trial], max_drop: float) -> list[_Trial]:
    """Order measured trials from best to worst, as :func:`ranked_trials` does."""

    def badness(trial: _Trial) -> tuple[float, float, float]:
        drop = float(trial.user_attrs["accuracy_drop"])
        return max(drop - max_drop, 0.0), float(trial.user_attrs["memory_bytes"]), drop

    return sorted(trials, key=badness)


def choose(
    study: optuna.Study, trials: Sequence[_Trial], max_drop: float
) -> tuple[_Trial, FinalResult | None]:
    """Return the trial to take, and what the final report said of it.

    That is the trial which held with fresh seeds, or else the best by rank.

    Raises:
        StudyNotFoundError:
            If no trial is finished.
    """
    ranked = rank([trial for trial in trials if is_measured(trial)], max_drop)
    if not ranked:
        raise StudyNotFoundError(
            f"study {study.study_name!r}: expected at least one finished trial, got none"
        )
    best, final = ranked[0], FinalResult.load(study)
    if final is not None and best.number in (final.trial, *final.others):
        return next(trial for trial in ranked if trial.number == final.trial), final
    return best, None  # without a final report, or trials since then found a smaller one


def measured_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the finished trials of our objective, by number."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in trials if "memory_bytes" in trial.user_attrs]


def ranked_trials(study: optuna.Study, max_drop: float) -> list[FrozenTrial]:
    """Order trials from best to worst.

    Feasible ones come first, by memory and then by accuracy; the others follow by how far their
    accuracy drop is off, so that there is always an answer.

    Args:
        study:
            A study of our objective, of either mode.
        max_drop:
            Largest feasible drop of validation accuracy, in percentage points.

    Raises:
        StudyNotFoundError:
            If no trial is finished.
    """
    trials = rank(measured_trials(study), max_drop)
    if not trials:
        raise StudyNotFoundError(
            f"study {study.study_name!r}: expected at least one finished trial, got none"
        )
    return trials


def feasible_trials(study: optuna.Study, max_drop: float) -> list[FrozenTrial]:
    """Return the feasible trials from the smallest on, or all by nearness if none is feasible.

    Raises:
        StudyNotFoundError:
            If no trial is finished.
    """
    ranked = ranked_trials(study, max_drop)
    return [t for t in ranked if float(t.user_attrs["accuracy_drop"]) <= max_drop] or ranked
