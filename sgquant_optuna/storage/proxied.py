"""Storages to which this package adds heartbeats: a gRPC proxy, and a journal file."""

from __future__ import annotations

import copy
import functools
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import GrpcStorageProxy, JournalStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.storage.attributes import ASKED_ATTR, BEAT_ATTR, BIRTH_ATTR
from sgquant_optuna.storage.heartbeat import AttributeHeartbeat, is_heartbeat_due_at_creation
from sgquant_optuna.storage.processes import birth_signature
from sgquant_optuna.storage.retries import (
    REPEATABLE,
    Backoff,
    retry,
    retry_methods,
    write_state_once,
)
from sgquant_optuna.storage.urls import file_of, missing_driver, shown_url
from sgquant_optuna.storage.waits import told_if_long

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

DEFAULT_PORT = 13000
KEEPALIVE = 20  # seconds without a message after which each side asks the other for a sign
REFUSAL = "OUT_OF_RANGE"  # gRPC status of what the database refuses; Optuna uses it for nothing
_KEEPALIVE_ANSWER = 10  # seconds
_CONNECT_SECONDS = 10.0
_DEADLINE = 60.0  # seconds of a call
_REPEATABLE = (*REPEATABLE, "get_all_trials", "set_trial_param")


class HeartbeatProxy(AttributeHeartbeat, GrpcStorageProxy):
    """A gRPC proxy with heartbeats; calls to it are repeated while it is away.

    Args:
        host:
            Name or address of its machine.
        port:
            Port that it listens on.
        retry_seconds:
            Longest time to repeat a call while the proxy is away.
    """

    def __init__(self, *, host: str, port: int, retry_seconds: float) -> None:
        self.retry_seconds = retry_seconds
        super().__init__(host=host, port=port)

    def _setup(self) -> None:
        """Connect as Optuna does, but limit the time of each call and gRPC's pauses."""
        import grpc
        from optuna.storages._grpc.auto_generated.api_pb2_grpc import StorageServiceStub
        from optuna.storages._grpc.client import GrpcClientCache

        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),  # grows to minutes by default
            ("grpc.keepalive_time_ms", 1000 * KEEPALIVE),
            ("grpc.keepalive_timeout_ms", 1000 * _KEEPALIVE_ANSWER),
        ]
        self._channel = grpc.insecure_channel(f"{self._host}:{self._port}", options=options)
        self._stub = StorageServiceStub(self._channel)  # type: ignore[no-untyped-call]
        for name, call in list(vars(self._stub).items()):
            setattr(self._stub, name, functools.partial(_call_in_time, name, call))
        self._cache = GrpcClientCache(self._stub)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial with a token, or find the trial that an earlier try created."""
        create, token = super().create_new_trial, uuid.uuid4().hex
        if template_trial is None:
            # Signed here, because the proxy would sign with its own process.
            signed = {BIRTH_ATTR: birth_signature(token, runs_here=True)}
            beat = {BEAT_ATTR: token} if is_heartbeat_due_at_creation() else {}
            template = optuna.trial.create_trial(
                state=TrialState.RUNNING, system_attrs={**signed, **beat}
            )
        else:
            template = copy.copy(template_trial)
        template.system_attrs = {**template.system_attrs, ASKED_ATTR: token}
        tries = 0

        def try_to_create() -> int:
            nonlocal tries
            tries += 1
            if tries > 1:
                for trial in self.get_all_trials(study_id, deepcopy=False):
                    if trial.system_attrs.get(ASKED_ATTR) == token:
                        return trial._trial_id
            return create(study_id, template)

        return retry(try_to_create, self.retry_seconds)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Write the state of a trial and its values; see Optuna's base class."""
        write = super().set_trial_state_values
        if state == TrialState.WAITING:  # released; another worker may run it by now
            self.get_trial(trial_id)  # waits for the proxy, so one try is enough
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


retry_methods(HeartbeatProxy, _REPEATABLE)


def _call_in_time(name: str, call: Any, request: Any) -> Any:
    import grpc

    with told_if_long(f"proxy: {name}"):
        try:
            return call(request, timeout=_DEADLINE)
        except grpc.RpcError as error:
            if error.code().name != REFUSAL:
                raise
            raise StorageError(error.details()) from error


class HeartbeatJournal(AttributeHeartbeat, JournalStorage):
    """A journal file with heartbeats."""


def open_proxy(
    url: URL, *, wait: float, retry_seconds: float, heartbeat_interval: int, grace_period: int
) -> BaseStorage:
    """Connect to a proxy that ``sgquant serve`` runs.

    Raises:
        StorageError:
            If the URL has a login, grpcio is missing, or no proxy answers.
    """
    if url.password is not None or url.username is not None or url.database:
        raise StorageError(f"storage {shown_url(url)}: expected grpc://HOST:PORT, and no login")
    try:
        import grpc  # noqa: F401
    except ImportError as error:
        raise missing_driver(url) from error
    host, port = url.host or "127.0.0.1", url.port or DEFAULT_PORT
    proxy = HeartbeatProxy(host=host, port=port, retry_seconds=retry_seconds)
    backoff = Backoff(wait)
    while True:
        try:
            proxy.wait_server_ready(timeout=_CONNECT_SECONDS)
            break
        except ConnectionError as error:
            if backoff.pause(error):
                continue
            proxy.close()
            raise StorageError(
                f"storage {shown_url(url)}: nobody answers; start one there: sgquant serve "
                "--storage URL"
            ) from error
    proxy.start_heartbeat(heartbeat_interval, grace_period)
    return proxy


def open_journal(
    url: URL, *, create: bool, heartbeat_interval: int, grace_period: int
) -> BaseStorage:
    """Open a journal file.

    Raises:
        StorageError:
            If the file is missing and may not be created, cannot be written, or is no journal.
    """
    from optuna.storages.journal import JournalFileBackend

    path = file_of(url)
    if path is None or url.host:
        raise StorageError(f"storage {shown_url(url)}: expected journal:///FILE")
    if not create and not path.exists():
        raise StorageError(f"storage {path}: there is no such file; sgquant search makes one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
        journal: Any = HeartbeatJournal(JournalFileBackend(str(path)))
        journal.get_all_studies()  # reads it all
    except OSError as error:
        raise StorageError(f"storage {path}: cannot be written ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"storage {path}: expected an Optuna journal, got another file") from (
            error
        )
    journal.start_heartbeat(heartbeat_interval, grace_period)
    return journal  # type: ignore[no-any-return]
