"""Reads trials in two statements, where Optuna's models take one for each kind of detail."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models

_PARAM, _VALUE, _STEP, _USER, _SYSTEM = _KINDS = range(5)
_VALUE_TYPES = {kind.name: kind for kind in models.TrialValueModel.TrialValueType}
_STEP_TYPES = {
    kind.name: kind for kind in models.TrialIntermediateValueModel.TrialIntermediateValueType
}


def with_details(trials: Sequence[Any], which: Any, session: Any) -> list[SimpleNamespace]:
    """Return trials with everything that ``RDBStorage`` builds its frozen trials from.

    Args:
        trials:
            Trial models.
        which:
            List or SELECT of the ``trial_id`` of these trials.
        session:
            Session of SQLAlchemy.
    """
    found: dict[int, list[list[Any]]] = defaultdict(lambda: [[] for _ in _KINDS])
    for row in session.execute(_details(which)) if trials else ():
        found[row.trial_id][row.kind].append(row)
    return [_detailed(trial, found[trial.trial_id]) for trial in trials]


def _detailed(trial: Any, rows: list[list[Any]]) -> SimpleNamespace:
    return SimpleNamespace(
        trial_id=trial.trial_id,
        number=trial.number,
        state=trial.state,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params=[
            SimpleNamespace(
                param_id=row.place,
                param_name=row.name,
                param_value=row.value,
                distribution_json=row.content,
            )
            for row in rows[_PARAM]
        ],
        values=[
            SimpleNamespace(
                objective=row.place, value=row.value, value_type=_VALUE_TYPES[row.content]
            )
            for row in rows[_VALUE]
        ],
        intermediate_values=[
            SimpleNamespace(
                step=row.place,
                intermediate_value=row.value,
                intermediate_value_type=_STEP_TYPES[row.content],
            )
            for row in rows[_STEP]
        ],
        user_attributes=_attributes(rows[_USER]),
        system_attributes=_attributes(rows[_SYSTEM]),
    )


def _attributes(rows: list[Any]) -> list[SimpleNamespace]:
    rows.sort(key=lambda row: row.place)
    return [SimpleNamespace(key=row.name, value_json=row.content) for row in rows]


def _details(which: Any) -> sa.CompoundSelect[Any]:
    """Return the statement that reads all details, each row with its kind."""
    param, value = models.TrialParamModel, models.TrialValueModel
    step = models.TrialIntermediateValueModel
    user, system = models.TrialUserAttributeModel, models.TrialSystemAttributeModel

    def part(kind: int, model: Any, *columns: Any) -> sa.Select[Any]:
        names = ("place", "name", "value", "content")
        labelled = [column.label(name) for column, name in zip(columns, names, strict=True)]
        head = [model.trial_id.label("trial_id"), sa.literal_column(str(kind)).label("kind")]
        return sa.select(*head, *labelled).where(model.trial_id.in_(which))

    none = sa.null()
    user_id, system_id = user.trial_user_attribute_id, system.trial_system_attribute_id
    step_type = _name(step.intermediate_value_type)
    # The first part gives the columns their types, so it must have no NULL of its own.
    return sa.union_all(
        part(
            _PARAM,
            *(param, param.param_id, param.param_name, param.param_value, param.distribution_json),
        ),
        part(_VALUE, value, value.objective, none, value.value, _name(value.value_type)),
        part(_STEP, step, step.step, none, step.intermediate_value, step_type),
        part(_USER, user, user_id, user.key, none, user.value_json),
        part(_SYSTEM, system, system_id, system.key, none, system.value_json),
    )


def _name(column: Any) -> Any:
    return sa.cast(column, sa.String(16))
