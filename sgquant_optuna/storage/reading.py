"""Reads trials in two statements, where Optuna's models take one for each kind of detail."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models

_PARAM, _VALUE, _STEP, _USER, _SYSTEM = range(5)


def with_details(trials: Sequence[Any], which: Any, session: Any) -> list[SimpleNamespace]:
    """Return trials with all that ``RDBStorage`` builds its frozen trials from.

    Args:
        trials:
            Trial models.
        which:
            What their ``trial_id`` is in: a list, or a SELECT.
        session:
            Of SQLAlchemy.
    """
    found: dict[int, list[list[Any]]] = defaultdict(lambda: [[] for _ in range(5)])
    for row in session.execute(_details(which)) if trials else ():
        found[row.trial_id][row.kind].append(row)
    return [
        SimpleNamespace(
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
                for row in found[trial.trial_id][_PARAM]
            ],
            values=[
                SimpleNamespace(
                    objective=row.place,
                    value=row.value,
                    value_type=models.TrialValueModel.TrialValueType[row.content],
                )
                for row in found[trial.trial_id][_VALUE]
            ],
            intermediate_values=[
                SimpleNamespace(
                    step=row.place,
                    intermediate_value=row.value,
                    intermediate_value_type=(
                        models.TrialIntermediateValueModel.TrialIntermediateValueType[row.content]
                    ),
                )
                for row in found[trial.trial_id][_STEP]
            ],
            user_attributes=_attributes(found[trial.trial_id][_USER]),
            system_attributes=_attributes(found[trial.trial_id][_SYSTEM]),
        )
        for trial in trials
    ]


def _attributes(rows: list[Any]) -> list[SimpleNamespace]:
    rows.sort(key=lambda row: row.place)
    return [SimpleNamespace(key=row.name, value_json=row.content) for row in rows]


def _details(which: Any) -> sa.CompoundSelect[Any]:
    param, value, step = (
        models.TrialParamModel,
        models.TrialValueModel,
        models.TrialIntermediateValueModel,
    )
    user, system = models.TrialUserAttributeModel, models.TrialSystemAttributeModel

    def part(kind: int, model: Any, *columns: Any) -> sa.Select[Any]:
        names = ("place", "name", "value", "content")
        labelled = [column.label(name) for column, name in zip(columns, names, strict=True)]
        head = [model.trial_id.label("trial_id"), sa.literal_column(str(kind)).label("kind")]
        return sa.select(*head, *labelled).where(model.trial_id.in_(which))

    none = sa.null()
    # The first part gives the columns their types, so it must have no NULL of its own.
    return sa.union_all(
        part(
            _PARAM,
            param,
            param.param_id,
            param.param_name,
            param.param_value,
            param.distribution_json,
        ),
        part(_VALUE, value, value.objective, none, value.value, _name(value.value_type)),
        part(
            _STEP,
            step,
            step.step,
            none,
            step.intermediate_value,
            _name(step.intermediate_value_type),
        ),
        part(_USER, user, user.trial_user_attribute_id, user.key, none, user.value_json),
        part(
            _SYSTEM, system, system.trial_system_attribute_id, system.key, none, system.value_json
        ),
    )


def _name(column: Any) -> Any:
    return sa.cast(column, sa.String(16))
