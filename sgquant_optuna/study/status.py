"""How a study is going: its trials by state, its workers, how fast it is and when it ends."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import optuna
from optuna.trial import TrialState

from sgquant_optuna.exceptions import StudyNotFoundError
from sgquant_optuna.storage.attributes import WORKER_ATTR
from sgquant_optuna.study.early_stop import EarlyStop
from sgquant_optuna.study.metric_words import MetricWords
from sgquant_optuna.study.plan import SearchPlan
from sgquant_optuna.study.record import StudyRecord
from sgquant_optuna.study.rows import TrialRow, grace_seconds, silent_seconds, trial_rows
from sgquant_optuna.study.selection import choose
from sgquant_optuna.study.trial_result import TrialScore

UNNAMED = "(unnamed)"
_HOUR = timedelta(hours=1)
_Row = TrialRow[TrialScore]


class StudyState(StrEnum):
    """What a study is doing."""

    NEW = "new"
    RUNNING = "running"
    STOPPED = "stopped"
    DONE = "done"


@dataclass(frozen=True)
class WorkerStatus:
    """What one worker did.

    Args:
        name:
            Name that it signs its trials with; ``"(unnamed)"`` for trials without a signature.
        finished:
            Trials that it finished.
        running:
            Trials that it runs, stale ones included.
        last_seen:
            Time when it last began or finished a trial, in UTC.
    """

    name: str
    finished: int
    running: int
    last_seen: datetime


@dataclass(frozen=True)
class StudyStatus:
    """How a study is going.

    Args:
        study_name:
            Name of the study.
        planned:
            Trials that were asked for, or ``None`` if the study does not say.
        finished:
            Complete trials; pruned ones count too.
        running:
            Trials that run and give signs of life.
        stale:
            Running trials whose worker is silent for longer than the storage's grace period. The
            next worker that starts a trial fails and repeats them.
        failed:
            Failed trials, those of killed workers included.
        waiting:
            Trials that any worker will take next: enqueued, given back, or repeated.
        per_hour_lately:
            Trials finished in the last hour, per hour that the study ran in it.
        per_hour:
            Trials finished per hour since the first one began.
        seconds_left:
            Seconds until all planned trials are finished at the late speed; ``None`` if nothing
            runs or nothing is planned.
        best_saving:
            Saving of the trial to take, against dense float32; ``None`` if none is feasible.
        best_drop:
            Most probable drop of it, in the unit of the metric.
        metric:
            Metric of the study; ``None`` if it is of another objective.
        ended_early:
            Why it ended before all planned trials; ``None`` if it did not.
        workers:
            Workers that signed trials, most finished trials first.
    """

    study_name: str
    planned: int | None
    finished: int
    running: int
    stale: int
    failed: int
    waiting: int
    per_hour_lately: float
    per_hour: float
    seconds_left: float | None
    best_saving: float | None
    best_drop: float | None
    metric: MetricWords | None
    ended_early: EarlyStop | None
    workers: tuple[WorkerStatus, ...]

    @property
    def state(self) -> StudyState:
        """What the study is doing."""
        if self.planned is not None and self.finished >= self.planned:
            return StudyState.DONE
        if self.ended_early is not None and self.ended_early.why == "settled":
            return StudyState.DONE
        if self.running:
            return StudyState.RUNNING
        return StudyState.STOPPED if self.finished or self.stale else StudyState.NEW


def study_status(study: optuna.Study, *, now: datetime | None = None) -> StudyStatus:
    """Tell how a study is going. Any study has a status, also one of another objective.

    Args:
        study:
            The study.
        now:
            The time, with its zone; the clock's by default.

    Raises:
        StudyMismatchError:
            If another version of this package wrote its record.
    """
    now = now or datetime.now(UTC)
    rows = trial_rows(study, TrialScore, [WORKER_ATTR])
    counts = Counter(row.state for row in rows)
    grace, silent = grace_seconds(study), silent_seconds(study)
    stale = sum(grace is not None and seconds > grace for seconds in silent.values())
    finished = counts[TrialState.COMPLETE] + counts[TrialState.PRUNED]
    running = counts[TrialState.RUNNING] - stale
    lately, overall = _speeds(rows, now, is_running=running > 0)
    planned = SearchPlan.planned_trials(study)
    is_over = not running and planned is not None and finished < planned
    left = None
    if planned is not None and running and lately:
        left = max(planned - finished, 0) / lately * 3600
    record = StudyRecord.load(study)
    best = None if record is None else _best(study, rows, record)
    return StudyStatus(
        study_name=study.study_name,
        planned=planned,
        finished=finished,
        running=running,
        stale=stale,
        failed=counts[TrialState.FAIL],
        waiting=counts[TrialState.WAITING],
        per_hour_lately=lately,
        per_hour=overall,
        seconds_left=left,
        best_saving=None if best is None else best.saving,
        best_drop=None if best is None else best.estimated_drop,
        metric=None if record is None else record.metric,
        ended_early=EarlyStop.load(study) if is_over else None,
        workers=_workers(rows),
    )


def _speeds(rows: Sequence[_Row], now: datetime, *, is_running: bool) -> tuple[float, float]:
    """Return trials per hour in the last hour, and since the first trial began."""
    ends = [
        row.finished
        for row in rows
        if row.finished is not None and row.state in (TrialState.COMPLETE, TrialState.PRUNED)
    ]
    starts = [row.started for row in rows if row.started is not None]
    if not ends or not starts:
        return 0.0, 0.0
    first = min(starts)
    last = now if is_running else max(ends)
    # A study that began ten minutes ago is judged by those, not by an hour mostly before it.
    recent = max(now - max(now - _HOUR, first), timedelta(seconds=1))
    lately = sum(end > now - _HOUR for end in ends)
    return lately * (_HOUR / recent), len(ends) * (_HOUR / max(last - first, timedelta(seconds=1)))


def _best(study: optuna.Study, rows: Sequence[_Row], record: StudyRecord) -> TrialScore | None:
    try:
        chosen, _ = choose(study, rows, record.limit)
    except StudyNotFoundError:
        return None
    return chosen.result if record.limit.is_feasible(chosen.result) else None


def _workers(rows: Sequence[_Row]) -> tuple[WorkerStatus, ...]:
    by_worker: defaultdict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        if row.state != TrialState.WAITING:
            by_worker[str(row.extras.get(WORKER_ATTR, UNNAMED))].append(row)
    workers = []
    for name, mine in by_worker.items():
        moments = [m for row in mine for m in (row.started, row.finished) if m is not None]
        if not moments:
            continue
        states = Counter(row.state for row in mine)
        finished = states[TrialState.COMPLETE] + states[TrialState.PRUNED]
        workers.append(WorkerStatus(name, finished, states[TrialState.RUNNING], max(moments)))
    return tuple(sorted(workers, key=lambda worker: (-worker.finished, worker.name)))
