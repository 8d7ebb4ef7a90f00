"""Which trial of a study to take: the best within its limit, or the nearest miss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic

import optuna

from sgquant_optuna.exceptions import StudyNotFoundError
from sgquant_optuna.study.final_result import FinalResult
from sgquant_optuna.study.limit import Limit
from sgquant_optuna.study.rows import TrialRow
from sgquant_optuna.study.trial_result import Score, TrialScore


@dataclass(frozen=True)
class Ranked(Generic[Score]):
    """A finished trial of our objective.

    Args:
        number:
            Number of the trial in the study.
        result:
            Result of the trial.
    """

    number: int
    result: Score


def rank(
    study: optuna.Study, rows: Iterable[TrialRow[Score]], limit: Limit
) -> list[Ranked[Score]]:
    """Order the finished trials of our objective from best to worst.

    Feasible ones come first, by memory and then by drop, or with a budget by drop and then by
    memory; the others follow by how far they are off, so that there is always an answer.

    Args:
        study:
            Study of our objective, of any mode.
        rows:
            Trials of the study.
        limit:
            Limit of the study.

    Raises:
        StudyNotFoundError:
            If no trial is finished.
    """
    measured = [Ranked(row.number, row.result) for row in rows if row.result is not None]
    if not measured:
        raise StudyNotFoundError(
            f"study {study.study_name!r}: expected at least one finished trial, got none"
        )
    return sorted(measured, key=lambda trial: limit.badness(trial.result))


def best_feasible(results: Iterable[TrialScore | None], limit: Limit) -> TrialScore | None:
    """Return the result of the best feasible trial; ``None`` if none is feasible.

    Args:
        results:
            Results of the trials; ``None`` for one that our objective has not finished.
        limit:
            Limit of the study.
    """
    feasible = (one for one in results if one is not None and limit.is_feasible(one))
    return min(feasible, key=limit.badness, default=None)


def choose(
    study: optuna.Study,
    rows: Iterable[TrialRow[Score]],
    limit: Limit,
    *,
    number: int | None = None,
) -> tuple[Ranked[Score], FinalResult | None]:
    """Return the trial to take, and what the final report said of it.

    That is the trial which was asked for, or which held with fresh seeds, or else the best by
    rank.

    Args:
        study:
            Study of our objective; its final report is read.
        rows:
            Trials of the study.
        limit:
            Limit of the study.
        number:
            Number of the trial that is asked for.

    Raises:
        StudyNotFoundError:
            If no trial is finished, or not the one that is asked for.
    """
    ranked = rank(study, rows, limit)
    by_number = {trial.number: trial for trial in ranked}
    final = FinalResult.load(study)
    if number is None:
        best = ranked[0].number
        # Without a final report, or where trials since then found a smaller one, it is the best.
        number = final.trial if final is not None and final.knows(best) else best
    if number not in by_number:
        raise StudyNotFoundError(
            f"study {study.study_name!r}: expected a finished trial, got {number}; finished are "
            f"{', '.join(map(str, sorted(by_number)))}"
        )
    return by_number[number], final if final is not None and final.trial == number else None
