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
    for start in range(0, len(ids), _MAX_IDS):
        some = ids[start : start + _MAX_IDS]
        for model in (*_OF_TRIALS, trial):
            _delete(session, model, model.trial_id.in_(some))
    for model in (*_OF_STUDIES, models.StudyModel):
        _delete(session, model, model.study_id == study_id)


def _delete(session: Any, model: Any, rows: sa.ColumnElement[bool]) -> None:
    session.execute(sa.delete(model).where(rows).execution_options(synchronize_session=False))
