"""Storages that are no database of their own: a gRPC proxy, and a journal file."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import GrpcStorageProxy, JournalStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.storage.attributes import ASKED_ATTR, BEAT_ATTR, BIRTH_ATTR
from sgquant_optuna.storage.heartbeat import AttributeHeartbeat, beats_from_birth
from sgquant_optuna.storage.processes import birth_signature
from sgquant_optuna.storage.retries import (
    REPEATABLE,
    Patience,
    make_patient,
    repeat_patiently,
    write_state_once,
)
from sgquant_optuna.storage.urls import file_of, missing_driver, shown_url

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

DEFAULT_PORT = 13000
_PROXY_TIMEOUT = 10.0  # seconds
_REPEATABLE = (*REPEATABLE, "get_all_trials", "set_trial_param")


class BeatingProxy(AttributeHeartbeat, GrpcStorageProxy):
    """A gRPC proxy that is waited for while it is away, and whose trials beat.

    Args:
        host:
            Where it runs.
        port:
            Where it listens.
        patience:
            Seconds to wait for it each time that it is away.
    """

    def __init__(self, *, host: str, port: int, patience: float) -> None:
        self.patience = patience
        super().__init__(host=host, port=port)

    def _setup(self) -> None:
        """Connect as Optuna does, but do not let gRPC's own pauses grow to minutes."""
        import grpc
        from optuna.storages._grpc.auto_generated.api_pb2_grpc import StorageServiceStub
        from optuna.storages._grpc.client import GrpcClientCache

        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        self._channel = grpc.insecure_channel(f"{self._host}:{self._port}", options=options)
        self._stub = StorageServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._cache = GrpcClientCache(self._stub)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Make a trial that carries a token, or find the one that a broken try has made."""
        create, token = super().create_new_trial, uuid.uuid4().hex
        if template_trial is None:  # signed here, for the proxy would sign it with its own process
            signed = {BIRTH_ATTR: birth_signature(token, runs_here=True)}
            beat = {BEAT_ATTR: token} if beats_from_birth() else {}
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

        return repeat_patiently(try_to_create, self.patience)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Write the state of a trial and its values; see Optuna's base class."""
        write = super().set_trial_state_values
        if state == TrialState.WAITING:  # given back; another worker may have it by now
            self.get_trial(trial_id)  # waits for the proxy, so that one try is enough
            return write(trial_id, state, values)
        if state == TrialState.RUNNING and beats_from_birth():
            self.record_heartbeat(trial_id)
        return write_state_once(
            self, lambda: write(trial_id, state, values), trial_id, state, values, self.patience
        )


make_patient(BeatingProxy, _REPEATABLE)


class BeatingJournal(AttributeHeartbeat, JournalStorage):
    """A journal whose trials beat."""


def open_proxy(
    url: URL, *, wait: float, patience: float, heartbeat_interval: int, grace_period: int
) -> BaseStorage:
    """Connect to a proxy that ``sgquant serve`` runs.

    Raises:
        StorageError:
            If grpcio is missing or nobody answers.
    """
    if url.password is not None or url.username is not None or url.database:
        raise StorageError(f"storage {shown_url(url)}: expected grpc://HOST:PORT, and no login")
    try:
        import grpc  # noqa: F401
    except ImportError as error:
        raise missing_driver(url) from error
    host, port = url.host or "127.0.0.1", url.port or DEFAULT_PORT
    proxy = BeatingProxy(host=host, port=port, patience=patience)
    waiting = Patience(wait)
    while True:
        try:
            proxy.wait_server_ready(timeout=_PROXY_TIMEOUT)
            break
        except ConnectionError as error:
            if waiting.pause(error):
                continue
            proxy.close()
            raise StorageError(
                f"storage {shown_url(url)}: nobody answers; start one there: sgquant serve "
                "--storage URL"
            ) from error
    proxy.start_beating(heartbeat_interval, grace_period)
    return proxy


def open_journal(
    url: URL, *, create: bool, heartbeat_interval: int, grace_period: int
) -> BaseStorage:
    """Open a journal file.

    Raises:
        StorageError:
            If it is missing and not to be made, cannot be written, or is no journal.
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
        journal: Any = BeatingJournal(JournalFileBackend(str(path)))
        journal.get_all_studies()  # reads it all
    except OSError as error:
        raise StorageError(f"storage {path}: cannot be written ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"storage {path}: expected an Optuna journal, got another file") from (
            error
        )
    journal.start_beating(heartbeat_interval, grace_period)
    return journal  # type: ignore[no-any-return]
