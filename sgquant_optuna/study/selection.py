"""Which trial of a study to take: the smallest that keeps the accuracy, or the nearest miss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic

import optuna

from sgquant_optuna.exceptions import StudyNotFoundError
from sgquant_optuna.study.final_result import FinalResult
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
    study: optuna.Study, rows: Iterable[TrialRow[Score]], max_drop: float
) -> list[Ranked[Score]]:
    """Order the finished trials of our objective from best to worst.

    Feasible ones come first, by memory and then by drop; the others follow by how far the bound of
    their drop is off, so that there is always an answer.

    Args:
        study:
            Study of our objective, of either mode.
        rows:
            Trials of the study.
        max_drop:
            Largest feasible drop, in percentage points.

    Raises:
        StudyNotFoundError:
            If no trial is finished.
    """

    def badness(trial: Ranked[Score]) -> tuple[float, float, float]:
        result = trial.result
        off = max(result.violation(max_drop), 0.0)
        return off, result.memory_bytes, result.estimated_drop

    measured = [Ranked(row.number, row.result) for row in rows if row.result is not None]
    if not measured:
        raise StudyNotFoundError(
            f"study {study.study_name!r}: expected at least one finished trial, got none"
        )
    return sorted(measured, key=badness)


def best_saving(results: Iterable[TrialScore | None], max_drop: float) -> float | None:
    """Return the largest saving of a feasible trial; ``None`` if none is feasible.

    Args:
        results:
            Results of the trials; ``None`` for one that our objective has not finished.
        max_drop:
            Largest feasible drop, in percentage points.
    """
    feasible = (one for one in results if one is not None and one.is_feasible(max_drop))
    return max((one.saving for one in feasible), default=None)


def choose(
    study: optuna.Study,
    rows: Iterable[TrialRow[Score]],
    max_drop: float,
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
        max_drop:
            Largest feasible drop, in percentage points.
        number:
            Number of the trial that is asked for.

    Raises:
        StudyNotFoundError:
            If no trial is finished, or not the one that is asked for.
    """
    ranked = rank(study, rows, max_drop)
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
