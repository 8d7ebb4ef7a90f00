"""A few columns of all trials of a study, fast enough for tens of thousands of trials.

Optuna reads every parameter and attribute of a trial through its object mapper: 9 s for 10,000
trials. Reports need a handful, so a database is asked for those alone.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Generic

import optuna
import sqlalchemy as sa
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from sgquant_optuna.storage.databases import read_from
from sgquant_optuna.storage.heartbeat import AttributeHeartbeat
from sgquant_optuna.study.record import StudyRecord
from sgquant_optuna.study.trial_result import Score, with_learned_bounds

# The columns of Optuna's schema v3.2.0.a, that Optuna 3 to 5 share.
_TRIALS = sa.table(
    "trials",
    sa.column("trial_id"),
    sa.column("number"),
    sa.column("study_id"),
    sa.column("state"),
    sa.column("datetime_start", sa.DateTime),
    sa.column("datetime_complete", sa.DateTime),
)
_ATTRS = sa.table(
    "trial_user_attributes", sa.column("trial_id"), sa.column("key"), sa.column("value_json")
)
_BEATS = sa.table("trial_heartbeats", sa.column("trial_id"), sa.column("heartbeat", sa.DateTime))


@dataclass(frozen=True)
class TrialRow(Generic[Score]):
    """One trial as a line of a table.

    Args:
        trial_id:
            Key of the trial in the storage.
        number:
            Number of the trial in the study.
        state:
            State of the trial.
        started:
            Time of its start, in UTC; ``None`` if it is waiting.
        finished:
            Time of its end, in UTC; ``None`` if it has not ended.
        result:
            Result of the trial; ``None`` if our objective has not finished it.
        extras:
            Further user attributes that were asked for and that it has.
    """

    trial_id: int
    number: int
    state: TrialState
    started: datetime | None
    finished: datetime | None
    result: Score | None
    extras: Mapping[str, Any]


def trial_rows(
    study: optuna.Study, kind: type[Score], extras: Sequence[str] = ()
) -> list[TrialRow[Score]]:
    """Return all trials of a study with what they measured, by number.

    The bounds of their drops are learned from all of them.

    Args:
        study:
            Any study; one in a database is read by two queries, others through Optuna.
        kind:
            Class of the results: :class:`TrialScore`, or :class:`TrialResult` for all of it.
        extras:
            Names of further user attributes.
    """
    database = _database(study._storage)
    if database is None:
        return rows_of(study, study.get_trials(deepcopy=False), kind, extras)
    mine = _TRIALS.c.study_id == study._study_id
    of_trials = sa.select(_TRIALS).where(mine).order_by(_TRIALS.c.number, _TRIALS.c.trial_id)
    of_attrs = (
        sa.select(_ATTRS)
        .join(_TRIALS, _TRIALS.c.trial_id == _ATTRS.c.trial_id)
        .where(mine, _ATTRS.c.key.in_((*kind.names(), *extras)))
    )
    trials, found = read_from(
        database,
        lambda connection: [connection.execute(query).all() for query in (of_trials, of_attrs)],
    )
    attrs: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    for trial_id, key, value in found:
        attrs[trial_id][key] = json.loads(value)
    rows = [
        TrialRow(
            row.trial_id,
            row.number,
            TrialState[row.state],
            _utc(row.datetime_start),
            _utc(row.datetime_complete),
            _result(row.number, TrialState[row.state], attrs[row.trial_id], kind),
            _picked(attrs[row.trial_id], extras),
        )
        for row in trials
    ]
    return _bounded(study, rows)


def rows_of(
    study: optuna.Study,
    trials: Sequence[FrozenTrial],
    kind: type[Score],
    extras: Sequence[str] = (),
) -> list[TrialRow[Score]]:
    """Return the rows of trials that were read already, with bounds learned from all of them."""
    return _bounded(study, [row_of(trial, kind, extras) for trial in trials])


def _bounded(study: optuna.Study, rows: list[TrialRow[Score]]) -> list[TrialRow[Score]]:
    confidence = StudyRecord.confidence_in(study)
    if confidence is None:
        return rows
    results = with_learned_bounds([row.result for row in rows], confidence)
    return [replace(row, result=result) for row, result in zip(rows, results, strict=True)]


def row_of(trial: FrozenTrial, kind: type[Score], extras: Sequence[str] = ()) -> TrialRow[Score]:
    """Return the row of one trial, with the bound that was known when it ended."""
    return TrialRow(
        trial._trial_id,
        trial.number,
        trial.state,
        _local_to_utc(trial.datetime_start),
        _local_to_utc(trial.datetime_complete),
        _result(trial.number, trial.state, trial.user_attrs, kind),
        _picked(trial.user_attrs, extras),
    )


def _result(
    number: int, state: TrialState, attrs: Mapping[str, Any], kind: type[Score]
) -> Score | None:
    return kind.of(attrs, f"trial {number}") if state == TrialState.COMPLETE else None


def _picked(attrs: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: attrs[name] for name in names if name in attrs}


def silent_seconds(study: optuna.Study) -> dict[int, float]:
    """Return for how long each running trial has given no sign of life, by trial id.

    Trials without a heartbeat, as in a storage that keeps none, are left out. The clock is the
    database's for both times, so clocks of workers do not matter; but through a proxy or in a
    journal, it is that of each worker against the one here.
    """
    if isinstance(study._storage, AttributeHeartbeat):
        return study._storage.silent_seconds(study._study_id)
    database = _database(study._storage)
    if database is None:
        return {}
    of_now = sa.select(sa.func.now().label("now"))
    of_beats = (
        sa.select(_BEATS.c.trial_id, _BEATS.c.heartbeat)
        .join(_TRIALS, _TRIALS.c.trial_id == _BEATS.c.trial_id)
        # The state is of an enumerated type on PostgreSQL.
        .where(
            _TRIALS.c.study_id == study._study_id,
            sa.cast(_TRIALS.c.state, sa.String(8)) == "RUNNING",
        )
    )
    ((now,),), beats = read_from(
        database,
        lambda connection: [connection.execute(query).all() for query in (of_now, of_beats)],
    )
    if isinstance(now, str):  # SQLite
        now = datetime.fromisoformat(now)
    # PostgreSQL gives the time with its zone, and stores the beats without, as Optuna does.
    return {
        row.trial_id: max((now.replace(tzinfo=None) - row.heartbeat).total_seconds(), 0.0)
        for row in beats
    }


def grace_seconds(study: optuna.Study) -> float | None:
    """Return the silence after which Optuna takes a trial for dead; ``None`` if it never does."""
    if isinstance(study._storage, AttributeHeartbeat):
        return float(study._storage.get_grace_period())
    database = _database(study._storage)
    if database is None or database.heartbeat_interval is None:
        return None
    grace = database.grace_period or 2 * database.heartbeat_interval
    return timedelta(seconds=grace).total_seconds()


def _database(storage: BaseStorage) -> RDBStorage | None:
    inner = getattr(storage, "_backend", storage)  # Optuna's cache in front of it
    return inner if isinstance(inner, RDBStorage) else None


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=UTC)


def _local_to_utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC)
