"""Optuna's storage in a database, changed in three ways.

Calls are repeated while the database is away, and what was being written then is written once.
Trials are read in two statements. What is set together is written in one transaction.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import uuid
from collections.abc import Callable, Container, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from optuna.distributions import check_distribution_compatibility, distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import mysql, postgresql, sqlite

from sgquant_optuna.storage import limits
from sgquant_optuna.storage.attributes import BIRTH_ATTR
from sgquant_optuna.storage.batching import Batch, current_batch
from sgquant_optuna.storage.connections import close_when_idle, reuse_tls_settings
from sgquant_optuna.storage.deleting import delete_rows
from sgquant_optuna.storage.heartbeat import is_heartbeat_due_at_creation
from sgquant_optuna.storage.limits import limit_waits
from sgquant_optuna.storage.processes import birth_signature
from sgquant_optuna.storage.read_only import READING, is_reading, mark_readers, only_reading
from sgquant_optuna.storage.reading import frozen_trials
from sgquant_optuna.storage.refused_values import attributes_of, name_refused, naming
from sgquant_optuna.storage.retries import (
    REPEATABLE,
    retry,
    retry_connecting,
    retry_methods,
    write_state_once,
)
from sgquant_optuna.storage.sqlite_locks import lock_holder
from sgquant_optuna.storage.waits import tell_long_statements

T = TypeVar("T")

_MAX_IDS = 1000  # in one statement
_SQLITE_TIMEOUT = 60.0  # seconds that a writer waits for another
_READING = (
    *READING,
    "get_trial_param",
    "get_trial_user_attrs",
    "get_trial_system_attrs",
    "_get_best_trial_id",
    "_get_trials",
    "_get_stale_trial_ids",
)
_REPEATABLE = (
    *REPEATABLE,
    *_READING,
    "record_heartbeat",
    "_set_trial_param",
    "write_batch",
)
_NAMED = (
    "set_study_user_attr",
    "set_study_system_attr",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "_set_trial_param",
)


@dataclass
class _Creation:
    """The creation of a trial, perhaps in several tries."""

    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    tries: int = 0


_creation: ContextVar[_Creation | None] = ContextVar("creation", default=None)


class StudyDatabase(RDBStorage):
    """A database; calls to it are repeated while it is away.

    Args:
        url:
            URL with an installed driver.
        retry_seconds:
            Longest time to repeat a call while the database is away.
        engine_kwargs:
            Options of SQLAlchemy's engine.
        options:
            Options of :class:`optuna.storages.RDBStorage`.
    """

    def __init__(
        self, url: str, *, retry_seconds: float, engine_kwargs: dict[str, Any], **options: Any
    ) -> None:
        self.retry_seconds = retry_seconds
        # Optuna formats the URL, so braces in a path or a name have to be doubled.
        doubled = url.replace("{", "{{").replace("}", "}}")
        super().__init__(doubled, engine_kwargs=engine_kwargs, **options)
        self._install_hooks()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Install the hooks again: unpickling makes a new engine without them."""
        super().__setstate__(state)
        self._install_hooks()

    def _install_hooks(self) -> None:
        """Add to a new engine what its kind of database needs."""

    def _create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> FrozenTrial:
        marker = _creation.set(_Creation())
        try:
            create = super()._create_new_trial
            return retry(lambda: create(study_id, template_trial), self.retry_seconds)
        finally:
            _creation.reset(marker)

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Any
    ) -> models.TrialModel:
        """Create a trial with a token, or find the trial that an earlier try created."""
        creation = _creation.get()
        assert creation is not None
        creation.tries += 1
        # A trial that runs from its creation is run by this process; a queued copy is not.
        signature: Any = birth_signature(creation.token, runs_here=template_trial is None)
        bare = copy.copy(template_trial)
        if bare is not None:
            bare.system_attrs = dict(bare.system_attrs)
            inherited = bare.system_attrs.pop(BIRTH_ATTR, None)  # of the trial that it copies
            if inherited and bare.state == TrialState.RUNNING:  # signed by a worker behind a proxy
                signature = inherited
        token = json.dumps(signature)
        attributes = models.TrialSystemAttributeModel
        if creation.tries > 1:
            created = (
                session.query(models.TrialModel)
                .join(attributes)
                .filter(models.TrialModel.study_id == study_id)
                .filter(attributes.key == BIRTH_ATTR, attributes.value_json == token)
                .one_or_none()
            )
            if created is not None:
                return created  # type: ignore[no-any-return]
        # Optuna would try it five times.
        with naming(lambda: _attributes(template_trial)):
            trial = super()._get_prepared_new_trial(study_id, bare, session)
            session.flush()
        session.add(attributes(trial_id=trial.trial_id, key=BIRTH_ATTR, value_json=token))
        if template_trial is None and is_heartbeat_due_at_creation():
            session.add(models.TrialHeartbeatModel(trial_id=trial.trial_id))
        return trial

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Write the state of a trial and its values; see Optuna's base class."""
        write = super().set_trial_state_values
        if state == TrialState.WAITING:  # released; another worker may run it by now
            return write(trial_id, state, values)
        if state == TrialState.RUNNING and is_heartbeat_due_at_creation():
            self.record_heartbeat(trial_id)
        return write_state_once(
            self,
            lambda: write(trial_id, state, values),
            trial_id,
            state,
            values,
            seconds=self.retry_seconds,
        )

    def delete_study(self, study_id: int) -> None:
        """Delete a study with all its rows, while workers may be writing them.

        Optuna deletes the rows that it has read, and keeps the study without a word where a worker
        has added one since.

        Raises:
            KeyError:
                If there is no such study.
        """
        tries = 0

        def once() -> None:
            nonlocal tries
            tries += 1
            try:
                with _create_scoped_session(self.scoped_session) as session:
                    delete_rows(study_id, session)
            except KeyError:
                if tries == 1:  # else an earlier try was executed, but its answer was lost
                    raise

        retry(once, self.retry_seconds)

    def record_heartbeat(self, trial_id: int) -> None:
        """Note that a trial runs; nothing if its study was deleted."""
        # Optuna reads the row twice, and asserts that nobody deleted it in between.
        with contextlib.suppress(AssertionError):
            super().record_heartbeat(trial_id)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Read a trial; see Optuna's base class."""
        with _create_scoped_session(self.scoped_session) as session:
            model = models.TrialModel.find_or_raise_by_id(trial_id, session)
            (trial,) = frozen_trials([model], [trial_id], session)
            return trial

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Read the trials of a study above an id, or among the included ids."""
        model = models.TrialModel
        wanted = sa.select(model.trial_id).where(model.study_id == study_id)
        if states is not None:
            assert isinstance(states, Iterable)
            wanted = wanted.where(model.state.in_(states))
        if trial_id_greater_than > -1:
            older = [i for i in included_trial_ids if i <= trial_id_greater_than]
            # Older ones are unfinished, so few trials follow the first of them; and a database
            # limits the numbers in a statement.
            if len(older) > _MAX_IDS:
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
                trial
                for trial in frozen_trials(found, wanted, session)
                if trial._trial_id > trial_id_greater_than or trial._trial_id in included_trial_ids
            ]

    def _set_trial_param(self, *param: Any) -> None:
        batch = current_batch(self)
        if batch is None:
            super()._set_trial_param(*param)
        else:
            batch.params.append(param)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write an attribute, at the end of :func:`.write_together` if inside one."""
        batch = current_batch(self)
        if batch is None:
            super().set_trial_user_attr(trial_id, key, value)
        else:
            batch.attrs[trial_id, key] = value

    def write_batch(self, batch: Batch) -> None:
        """Write parameters and attributes in one transaction."""
        with naming(lambda: attributes_of(batch)):
            try:
                with _create_scoped_session(self.scoped_session) as session:
                    self._write_in_session(batch, session)
            except sa.exc.IntegrityError:
                # The parameters exist: an earlier try was executed, but its answer was lost.
                with _create_scoped_session(self.scoped_session) as session:
                    self._write_in_session(Batch(attrs=batch.attrs), session)

    def _write_in_session(self, batch: Batch, session: Any) -> None:
        trials = {param[0] for param in batch.params} | {trial_id for trial_id, _ in batch.attrs}
        for trial_id in trials:
            trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session)
            self.check_trial_is_updatable(trial_id, trial.state)
        for trial_id, name, value, distribution, known in batch.params:
            if known is None:  # no trial had this name when the suggestion began
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


def _attributes(trial: FrozenTrial | None) -> dict[str, Any]:
    return {} if trial is None else {**trial.params, **trial.user_attrs, **trial.system_attrs}


retry_methods(StudyDatabase, _REPEATABLE)
name_refused(StudyDatabase, _NAMED)
mark_readers(StudyDatabase, _READING)


def read_from(storage: RDBStorage, query: Callable[[sa.Connection], T]) -> T:
    """Return what a function reads from a database; it is repeated while that is away.

    Args:
        storage:
            Storage in a database, of this package or of Optuna.
        query:
            Function that writes nothing.
    """

    def once() -> T:
        with only_reading(), storage.engine.connect() as connection:
            return query(connection)

    return retry(once, storage.retry_seconds if isinstance(storage, StudyDatabase) else 0.0)


class ServerDatabase(StudyDatabase):
    """A PostgreSQL or MariaDB server.

    Args:
        url:
            URL with an installed driver.
        options:
            Options of :class:`StudyDatabase`.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, engine_kwargs={}, **options)

    def _install_hooks(self) -> None:
        limit_waits(self.engine)  # both before the hook that connects
        reuse_tls_settings(self.engine)
        retry_connecting(self.engine, self.retry_seconds)
        is_psycopg = self.engine.dialect.driver.startswith("psycopg")
        tell_long_statements(self.engine, deadline=limits.SILENCE if is_psycopg else math.inf)
        close_when_idle(self.engine)


class SqliteFile(StudyDatabase):
    """An SQLite file that many processes of one machine share.

    Args:
        url:
            URL ``sqlite:///FILE``.
        options:
            Options of :class:`StudyDatabase`.
    """

    def __init__(self, url: str, **options: Any) -> None:
        connect = {"timeout": _SQLITE_TIMEOUT}
        super().__init__(url, engine_kwargs={"connect_args": connect}, **options)

    def _install_hooks(self) -> None:
        file = Path(self.engine.url.database or "")
        tell_long_statements(self.engine, lambda: lock_holder(file))
        sa.event.listen(self.engine, "connect", _on_connect)
        sa.event.listen(self.engine, "begin", _on_begin)
        self.engine.dispose()  # connections made before the hooks are not reused


def _on_connect(connection: Any, record: object) -> None:
    connection.isolation_level = None  # the driver's own BEGIN would come too late
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")  # no row for a trial whose study was deleted
    cursor.close()


def _on_begin(connection: sa.Connection) -> None:
    # Reading the state of a trial and writing it become one step, so no trial is taken twice. Who
    # only reads sees the state of the last commit and waits for nobody.
    connection.exec_driver_sql("BEGIN" if is_reading() else "BEGIN IMMEDIATE")
