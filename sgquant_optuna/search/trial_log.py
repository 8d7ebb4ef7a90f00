"""A line for each measured trial, that says what its value does not: whether it may be taken."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import optuna
from optuna.trial import Trial

from sgquant_optuna.study.selection import best_saving
from sgquant_optuna.study.trial_result import TrialResult, TrialScore

_logger = logging.getLogger(__name__)
_OPTUNAS = "optuna.sgquant_optuna"


def log_trial(
    trial: Trial, result: TrialResult, others: Sequence[TrialScore | None], max_drop: float
) -> None:
    """Log what a trial measured, once.

    Who configured Python's logging for ``sgquant_optuna`` at level INFO gets the line there. In a
    plain script it comes between Optuna's own lines, by Optuna's handler and verbosity.

    Args:
        trial:
            Trial that is about to end.
        result:
            Result of the trial.
        others:
            Results of the other finished trials of the study.
        max_drop:
            Largest feasible drop, in percentage points.
    """
    logger = _logger
    if not logger.isEnabledFor(logging.INFO):
        logger = optuna.logging.get_logger(_OPTUNAS)
    if not logger.isEnabledFor(logging.INFO):
        return
    logger.info(
        "Trial %d: saving %.1fx, drop %.2f and at most %.2f points, %s; %s, %.1f s",
        trial.number,
        result.saving,
        result.estimated_drop,
        result.drop_bound,
        _verdict(trial, result, max_drop),
        _best([result, *others], max_drop),
        result.seconds,
    )


def _verdict(trial: Trial, result: TrialResult, max_drop: float) -> str:
    if result.is_feasible(max_drop):
        return "feasible"
    penalty = "" if len(trial.study.directions) > 1 else ", so its value is a penalty"
    return f"not feasible ({result.violation(max_drop):.2f} points above the limit{penalty})"


def _best(results: Sequence[TrialScore | None], max_drop: float) -> str:
    best = best_saving(results, max_drop)
    return "none feasible yet" if best is None else f"best saving {best:.1f}x"
