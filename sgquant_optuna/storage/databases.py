"""Optuna's database storage, made to lose and to double nothing when the database goes away."""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Container, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from optuna.distributions import check_distribution_compatibility, distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import mysql, postgresql, sqlite

from sgquant_optuna.storage.attributes import BIRTH_ATTR
from sgquant_optuna.storage.batching import Batch, open_batch
from sgquant_optuna.storage.connections import close_when_idle, reuse_tls_settings
from sgquant_optuna.storage.heartbeat import beats_from_birth
from sgquant_optuna.storage.processes import birth_signature
from sgquant_optuna.storage.reading import with_details
from sgquant_optuna.storage.retries import (
    REPEATABLE,
    connect_patiently,
    make_patient,
    repeat_patiently,
    write_state_once,
)

_MOST_IDS = 1000  # in one statement
_SQLITE_TIMEOUT = 60.0  # seconds that a writer waits for another
_REPEATABLE = (
    *REPEATABLE,
    "get_trial_param",
    "get_trial_user_attrs",
    "get_trial_system_attrs",
    "_get_best_trial_id",
    "_get_trials",
    "_get_stale_trial_ids",
    "record_heartbeat",
    "_set_trial_param",
    "write_batch",
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
        signature: Any = birth_signature(birth.token, runs_here=template_trial is None)
        bare = copy.copy(template_trial)
        if bare is not None:
            bare.system_attrs = dict(bare.system_attrs)
            inherited = bare.system_attrs.pop(BIRTH_ATTR, None)  # of the stale trial it copies
            if inherited and bare.state == TrialState.RUNNING:  # a worker behind a proxy signed it
                signature = inherited
        token = json.dumps(signature)
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
        trial = super()._get_prepared_new_trial(study_id, bare, session)
        session.add(attributes(trial_id=trial.trial_id, key=BIRTH_ATTR, value_json=token))
        if template_trial is None and beats_from_birth():
            session.add(models.TrialHeartbeatModel(trial_id=trial.trial_id))
        return trial

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Write the state of a trial and its values; see Optuna's base class."""
        write = super().set_trial_state_values
        if state == TrialState.WAITING:  # given back; another worker may have it by now
            return write(trial_id, state, values)
        if state == TrialState.RUNNING and beats_from_birth():
            self.record_heartbeat(trial_id)
        return write_state_once(
            self, lambda: write(trial_id, state, values), trial_id, state, values, self.patience
        )

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Read a trial; see Optuna's base class."""
        with _create_scoped_session(self.scoped_session) as session:
            model = models.TrialModel.find_or_raise_by_id(trial_id, session)
            (trial,) = with_details([model], [trial_id], session)
            return self._build_frozen_trial_from_trial_model(trial)  # type: ignore[arg-type]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Read the trials of a study that are newer than one, or among those included."""
        model = models.TrialModel
        wanted = sa.select(model.trial_id).where(model.study_id == study_id)
        if states is not None:
            assert isinstance(states, Iterable)
            wanted = wanted.where(model.state.in_(states))
        if trial_id_greater_than > -1:
            older = [i for i in included_trial_ids if i <= trial_id_greater_than]
            # Older ones are unfinished: from the first of them on there are few, and a database
            # takes only so many numbers in a statement.
            if len(older) > _MOST_IDS:
                wanted = wanted.where(model.trial_id >= min(older))
            else:
                newer = model.trial_id > trial_id_greater_than
                wanted = wanted.where(sa.or_(newer, model.trial_id.in_(older)))
        with _create_scoped_session(self.scoped_session) as session:
            query = session.query(model).filter(model.trial_id.in_(wanted))
            found = query.order_by(model.trial_id).all()
            if not found:
                models.StudyModel.find_or_raise_by_id(study_id, session)
            return [
                self._build_frozen_trial_from_trial_model(trial)  # type: ignore[arg-type]
                for trial in with_details(found, wanted, session)
                if trial.trial_id > trial_id_greater_than or trial.trial_id in included_trial_ids
            ]

    def _set_trial_param(self, *param: Any) -> None:
        batch = open_batch(self)
        if batch is None:
            super()._set_trial_param(*param)
        else:
            batch.params.append(param)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write an attribute, or keep it for the end of :func:`.write_together`."""
        batch = open_batch(self)
        if batch is None:
            super().set_trial_user_attr(trial_id, key, value)
        else:
            batch.attrs[trial_id, key] = value

    def write_batch(self, batch: Batch) -> None:
        """Write what has waited in one transaction."""
        try:
            with _create_scoped_session(self.scoped_session) as session:
                self._write(batch, session)
        except sa.exc.IntegrityError:
            # Parameters are there already: a try before was written, but the answer was lost.
            with _create_scoped_session(self.scoped_session) as session:
                self._write(Batch(attrs=batch.attrs), session)

    def _write(self, batch: Batch, session: Any) -> None:
        trials = {param[0] for param in batch.params} | {trial_id for trial_id, _ in batch.attrs}
        for trial_id in trials:
            trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session)
            self.check_trial_is_updatable(trial_id, trial.state)
        for trial_id, name, value, distribution, known in batch.params:
            if known is None:  # the first trial with this name; another may be as early
                self._set_trial_param_without_commit(session, trial_id, name, value, distribution)
                continue
            check_distribution_compatibility(known, distribution)
            session.add(
                models.TrialParamModel(
                    trial_id=trial_id,
                    param_name=name,
                    param_value=value,
                    distribution_json=distribution_to_json(distribution),
                )
            )
        if batch.attrs:
            session.execute(self._upsert(batch.attrs))

    def _upsert(self, attrs: dict[tuple[int, str], Any]) -> sa.Executable:
        rows = [
            {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
            for (trial_id, key), value in attrs.items()
        ]
        model = models.TrialUserAttributeModel
        if self.engine.name == "mysql":
            of_mysql = mysql.insert(model).values(rows)
            return of_mysql.on_duplicate_key_update(value_json=of_mysql.inserted.value_json)
        insert = sqlite.insert if self.engine.name == "sqlite" else postgresql.insert
        statement = insert(model).values(rows)
        return statement.on_conflict_do_update(
            index_elements=[model.trial_id, model.key],
            set_={"value_json": statement.excluded.value_json},
        )


make_patient(StudyDatabase, _REPEATABLE)


class ServerDatabase(StudyDatabase):
    """A PostgreSQL or MariaDB server.

    A worker holds no connection during its minutes of training, so hundreds fit a server. It keeps
    one while it writes: to connect takes longer than a transaction.

    Args:
        url:
            With its driver.
        options:
            Options of :class:`StudyDatabase`.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, engine_kwargs={}, **options)

    def _install_hooks(self) -> None:
        reuse_tls_settings(self.engine)  # before the hook that connects
        super()._install_hooks()
        close_when_idle(self.engine)


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
