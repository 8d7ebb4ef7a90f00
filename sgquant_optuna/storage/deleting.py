"""Deletes the rows of a study so that no worker can add one meanwhile."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models

_MAX_IDS = 1000  # in one statement
_OF_TRIALS = (
    models.TrialUserAttributeModel,
    models.TrialSystemAttributeModel,
    models.TrialParamModel,
    models.TrialValueModel,
    models.TrialIntermediateValueModel,
    models.TrialHeartbeatModel,
)
_OF_STUDIES = (
    models.StudyDirectionModel,
    models.StudyUserAttributeModel,
    models.StudySystemAttributeModel,
)


def delete_rows(study_id: int, session: Any) -> None:
    """Delete all rows of a study in the transaction of a session.

    The locks are taken in the order of workers: a row cannot be added below one that is locked, so
    after the study no trial is added, and after the trials nothing of theirs.

    Raises:
        KeyError:
            If there is no such study.
    """
    models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
    trial = models.TrialModel
    locked = sa.select(trial.trial_id).where(trial.study_id == study_id).with_for_update()
    # By their numbers: MariaDB would read, and lock, whole tables for a subquery.
    ids = session.scalars(locked).all()
    _keep_from_reuse(max(study_id, *ids, 0), session.connection())
    for start in range(0, len(ids), _MAX_IDS):
        some = ids[start : start + _MAX_IDS]
        for model in (*_OF_TRIALS, trial):
            _delete(session, model, model.trial_id.in_(some))
    for model in (*_OF_STUDIES, models.StudyModel):
        _delete(session, model, model.study_id == study_id)


def _delete(session: Any, model: Any, rows: sa.ColumnElement[bool]) -> None:
    session.execute(sa.delete(model).where(rows).execution_options(synchronize_session=False))


def _keep_from_reuse(highest: int, connection: sa.Connection) -> None:
    """Note that numbers up to one were given out.

    SQLite gives the number after the highest that is left, so a new study and its trials could get
    those of a deleted one, and a worker of that would write into them. A server never does so.
    """
    if connection.dialect.name == "sqlite" and highest > _highest_known(connection):
        connection.exec_driver_sql(f"PRAGMA user_version = {highest:d}")


def _highest_known(connection: sa.Connection) -> int:
    return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())


def _number_after_deleted(mapper: object, connection: sa.Connection, row: Any) -> None:
    """Give a row of SQLite a number that no deleted one had."""
    if connection.dialect.name != "sqlite" or not (known := _highest_known(connection)):
        return
    (key,) = sa.inspect(type(row)).primary_key
    last = connection.execute(sa.select(sa.func.max(key))).scalar_one() or 0
    setattr(row, key.name, max(last, known) + 1)


for _numbered in (models.StudyModel, models.TrialModel):
    sa.event.listen(_numbered, "before_insert", _number_after_deleted)
