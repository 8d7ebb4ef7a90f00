"""Optuna's database storage, made to lose and to double nothing when the database goes away."""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.pool import NullPool

from sgquant_optuna.storage.heartbeat import beats_from_birth
from sgquant_optuna.storage.patience import connect_patiently, repeat_patiently
from sgquant_optuna.storage.tls import make_tls_settings_once
from sgquant_optuna.worker_name import process_mark

BIRTH_ATTR = "sgquant:birth"
_SQLITE_TIMEOUT = 60.0  # seconds that a writer waits for another
# What may happen twice: reading, and writing the same under a key.
_REPEATABLE = (
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "get_trial",
    "get_trial_param",
    "get_trial_user_attrs",
    "get_trial_system_attrs",
    "get_trial_id_from_study_id_trial_number",
    "_get_best_trial_id",
    "_get_trials",
    "_get_stale_trial_ids",
    "record_heartbeat",
    "set_study_user_attr",
    "set_study_system_attr",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "set_trial_intermediate_value",
    "_set_trial_param",
)


@dataclass
class _Birth:
    """A trial that is being made, perhaps in several tries."""

    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    tries: int = 0


_birth: ContextVar[_Birth | None] = ContextVar("birth", default=None)


class StudyDatabase(RDBStorage):
    """A database that is waited for while it is away.

    Args:
        url:
            With a driver that is installed.
        patience:
            Seconds to wait for the database each time that it is away, once it was there.
        engine_kwargs:
            Options of the engine.
        options:
            Options of :class:`optuna.storages.RDBStorage`.
    """

    def __init__(
        self, url: str, *, patience: float, engine_kwargs: dict[str, Any], **options: Any
    ) -> None:
        self.patience = patience
        # Optuna formats the URL, so braces in a path or a name have to be doubled.
        doubled = url.replace("{", "{{").replace("}", "}}")
        super().__init__(doubled, engine_kwargs=engine_kwargs, **options)
        self._install_hooks()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Install the hooks again: unpickling makes a new engine without them."""
        super().__setstate__(state)
        self._install_hooks()

    def _install_hooks(self) -> None:
        connect_patiently(self.engine, self.patience)

    def _create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> FrozenTrial:
        marker = _birth.set(_Birth())
        try:
            create = super()._create_new_trial
            return repeat_patiently(lambda: create(study_id, template_trial), self.patience)
        finally:
            _birth.reset(marker)

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Any
    ) -> models.TrialModel:
        """Make a trial that carries a token, or find the one that a broken try has made."""
        birth = _birth.get()
        assert birth is not None
        birth.tries += 1
        # A trial that runs from its birth is run by this process; a queued copy is not.
        token = json.dumps([birth.token, process_mark() if template_trial is None else None])
        attributes = models.TrialSystemAttributeModel
        if birth.tries > 1:
            made = (
                session.query(models.TrialModel)
                .join(attributes)
                .filter(models.TrialModel.study_id == study_id)
                .filter(attributes.key == BIRTH_ATTR, attributes.value_json == token)
                .one_or_none()
            )
            if made is not None:
                return made  # type: ignore[no-any-return]
        inherited = None
        if template_trial is not None:  # a copy of a stale trial has another's token
            inherited = template_trial.system_attrs.pop(BIRTH_ATTR, None)
        trial = super()._get_prepared_new_trial(study_id, template_trial, session)
        if template_trial is not None and inherited is not None:
            template_trial.system_attrs[BIRTH_ATTR] = inherited
        session.add(attributes(trial_id=trial.trial_id, key=BIRTH_ATTR, value_json=token))
        if template_trial is None and beats_from_birth():
            session.add(models.TrialHeartbeatModel(trial_id=trial.trial_id))
        return trial

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Write the state of a trial and its values; see Optuna's base class."""
        write = super().set_trial_state_values
        tries = 0

        def try_to_write() -> bool:
            nonlocal tries
            tries += 1
            try:
                return write(trial_id, state, values)
            except UpdateFinishedTrialError:
                # Only who runs a trial completes it: it was this process, before the break.
                if tries > 1 and values is not None:
                    stored = self.get_trial(trial_id)
                    if stored.state == state and stored.values == [float(v) for v in values]:
                        return True
                raise

        if state == TrialState.WAITING:  # given back; another worker may have it by now
            return write(trial_id, state, values)
        if state == TrialState.RUNNING and beats_from_birth():
            self.record_heartbeat(trial_id)
        return repeat_patiently(try_to_write, self.patience)


def _patient(name: str) -> Any:
    original = getattr(RDBStorage, name)

    @functools.wraps(original)
    def call(self: StudyDatabase, *args: Any, **kwargs: Any) -> Any:
        return repeat_patiently(lambda: original(self, *args, **kwargs), self.patience)

    return call


for _name in _REPEATABLE:
    setattr(StudyDatabase, _name, _patient(_name))


class ServerDatabase(StudyDatabase):
    """A PostgreSQL or MariaDB server.

    A worker holds no connection during its minutes of training, so hundreds fit a server.

    Args:
        url:
            With its driver.
        options:
            Options of :class:`StudyDatabase`.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, engine_kwargs={"poolclass": NullPool}, **options)

    def _install_hooks(self) -> None:
        make_tls_settings_once(self.engine)  # before the hook that connects
        super()._install_hooks()


class SqliteFile(StudyDatabase):
    """An SQLite file that many processes of one machine share.

    Args:
        url:
            ``sqlite:///FILE``.
        options:
            Options of :class:`StudyDatabase`.
    """

    def __init__(self, url: str, **options: Any) -> None:
        connect = {"timeout": _SQLITE_TIMEOUT}
        super().__init__(url, engine_kwargs={"connect_args": connect}, **options)

    def _install_hooks(self) -> None:
        sa.event.listen(self.engine, "connect", _on_connect)
        sa.event.listen(self.engine, "begin", _on_begin)
        self.engine.dispose()  # connections made before the hooks are not reused


def _on_connect(connection: Any, record: object) -> None:
    connection.isolation_level = None  # the driver's own BEGIN would come too late
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _on_begin(connection: sa.Connection) -> None:
    # Reading a trial's state and writing it become one step: no trial is taken twice.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
