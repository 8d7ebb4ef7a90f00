"""Which trial of a study to take: the smallest that keeps the accuracy, or the nearest miss."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState

from sgquant_optuna.exceptions import StudyNotFoundError


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

    def badness(trial: FrozenTrial) -> tuple[float, float, float]:
        drop = float(trial.user_attrs["accuracy_drop"])
        return max(drop - max_drop, 0.0), float(trial.user_attrs["memory_bytes"]), drop

    trials = sorted(measured_trials(study), key=badness)
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
