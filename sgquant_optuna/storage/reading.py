"""Reads trials in two statements, where Optuna's models take one for each kind of detail."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from optuna.distributions import json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial

_PARAM, _VALUE, _STEP, _USER, _SYSTEM = _KINDS = range(5)
_VALUE_TYPES = {kind.name: kind for kind in models.TrialValueModel.TrialValueType}
_STEP_TYPES = {
    kind.name: kind for kind in models.TrialIntermediateValueModel.TrialIntermediateValueType
}


def frozen_trials(trials: Sequence[Any], which: Any, session: Any) -> list[FrozenTrial]:
    """Return trials as ``RDBStorage`` builds them, in less memory.

    A study of many trials is held whole by each worker, so what is equal in all of them is held
    once: the distributions, and the names of parameters and attributes.

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
    return [_frozen(trial, found[trial.trial_id]) for trial in trials]


def _frozen(trial: Any, rows: list[list[Any]]) -> FrozenTrial:
    for kind in (_PARAM, _VALUE, _USER, _SYSTEM):
        rows[kind].sort(key=lambda row: row.place)
    distributions = {sys.intern(row.name): _distribution(row.content) for row in rows[_PARAM]}
    return FrozenTrial(
        number=trial.number,
        state=trial.state,
        value=None,
        values=[
            models.TrialValueModel.stored_repr_to_value(row.value, _VALUE_TYPES[row.content])
            for row in rows[_VALUE]
        ]
        or None,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params={
            name: distribution.to_external_repr(row.value)
            for (name, distribution), row in zip(distributions.items(), rows[_PARAM], strict=True)
        },
        distributions=distributions,
        user_attrs=_attributes(rows[_USER]),
        system_attrs=_attributes(rows[_SYSTEM]),
        intermediate_values={
            row.place: models.TrialIntermediateValueModel.stored_repr_to_intermediate_value(
                row.value, _STEP_TYPES[row.content]
            )
            for row in rows[_STEP]
        },
        trial_id=trial.trial_id,
    )


_distribution = lru_cache(4096)(json_to_distribution)


def _attributes(rows: list[Any]) -> dict[str, Any]:
    return {
        sys.intern(row.name): json.loads(row.content, object_pairs_hook=_with_shared_names)
        for row in rows
    }


def _with_shared_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {sys.intern(name): value for name, value in pairs}


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
