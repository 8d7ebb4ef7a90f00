"""A line for each measured trial, that says what its value does not: whether it may be taken."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import optuna
from optuna.trial import Trial

from sgquant_optuna.study.limit import Limit
from sgquant_optuna.study.selection import best_feasible
from sgquant_optuna.study.trial_result import TrialResult, TrialScore

_logger = logging.getLogger(__name__)
_OPTUNAS = "optuna.sgquant_optuna"


def log_trial(
    trial: Trial,
    result: TrialResult,
    others: Sequence[TrialScore | None],
    limit: Limit,
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
        limit:
            Limit of the study, and metric of its drops.
    """
    logger = _logger
    if not logger.isEnabledFor(logging.INFO):
        logger = optuna.logging.get_logger(_OPTUNAS)
    if not logger.isEnabledFor(logging.INFO):
        return
    logger.info(
        "Trial %d: saving %.1fx, drop %s and at most %s, %s; %s, %.1f s",
        trial.number,
        result.saving,
        limit.metric.digits(result.estimated_drop),
        limit.metric.drop(result.drop_bound),
        _verdict(trial, result, limit),
        _best([result, *others], limit),
        result.seconds,
    )


def _verdict(trial: Trial, result: TrialResult, limit: Limit) -> str:
    if limit.is_feasible(result):
        return "feasible"
    penalty = "" if len(trial.study.directions) > 1 else ", so its value is a penalty"
    return f"not feasible ({limit.describe_violation(result)}{penalty})"


def _best(results: Sequence[TrialScore | None], limit: Limit) -> str:
    best = best_feasible(results, limit)
    return "none feasible yet" if best is None else f"best {limit.describe_best(best)}"
