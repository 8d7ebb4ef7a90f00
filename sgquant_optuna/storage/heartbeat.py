"""Heartbeats of trials: in storages for which Optuna has none, and from the creation on."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import FrozenTrial, TrialState

from sgquant_optuna.storage.attributes import BEAT_ATTR

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

MAX_RETRIES = 2
_from_birth: ContextVar[bool] = ContextVar("from_birth", default=False)


@contextmanager
def heartbeats_from_creation() -> Iterator[None]:
    """Give each trial that is created inside its first heartbeat together with its number.

    Optuna writes the first heartbeat after it has created the trial, and a trial without any is
    never stale: a process killed in between would leave a running trial for ever. Use it around
    ``study.optimize`` only: a trial of ``study.ask`` gets no further heartbeats, so it would be
    declared stale.
    """
    token = _from_birth.set(True)
    try:
        yield
    finally:
        _from_birth.reset(token)


def is_heartbeat_due_at_creation() -> bool:
    """Tell whether trials that begin now are inside :func:`heartbeats_from_creation`."""
    return _from_birth.get()


class AttributeHeartbeat(BaseHeartbeat):
    """Heartbeats in an attribute of the trial, for storages that have none: gRPC and Journal.

    A heartbeat is a random word. A process that sees the same word for longer than the grace
    period, by its own clock, declares the trial stale, so no decision compares two clocks. Only a
    process that lives that long and looks twice can do so. A process that only shows a study looks
    once, so the word is followed by the time of the worker's clock.
    """

    _heartbeat_interval: int
    _grace_period: int
    _callback: Callable[[optuna.Study, FrozenTrial], None]
    _seen: dict[int, tuple[str, float]]

    def start_heartbeat(self, heartbeat_interval: int, grace_period: int) -> None:
        """Set the seconds between two heartbeats, and those after which a trial is stale."""
        self._heartbeat_interval = heartbeat_interval
        self._grace_period = grace_period
        self._callback = RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES)
        self._seen = {}

    def record_heartbeat(self, trial_id: int) -> None:
        """Write a new word; a finished trial needs none, nor does one of a deleted study."""
        storage: BaseStorage = self  # type: ignore[assignment]  # mixed into one
        try:
            storage.set_trial_system_attr(trial_id, BEAT_ATTR, _new_beat())
        except (optuna.exceptions.UpdateFinishedTrialError, KeyError):
            return

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        storage: Any = self
        running = storage.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        now = time.monotonic()
        seen = {}
        for trial in running:
            beat = trial.system_attrs.get(BEAT_ATTR)
            if not isinstance(beat, str):
                continue
            before = self._seen.get(trial._trial_id)
            seen[trial._trial_id] = before if before and before[0] == beat else (beat, now)
        # The heartbeats of other studies are kept.
        self._seen = {**self._seen, **seen}
        return [key for key, (_, since) in seen.items() if now - since > self._grace_period]

    def silent_seconds(self, study_id: int) -> dict[int, float]:
        """Return the seconds since the last heartbeat of each running trial that had one, by id.

        They compare the clocks of this process and of the workers, so use them to show only.
        """
        storage: Any = self
        running = storage.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        now = datetime.now(UTC)
        silent = {}
        for trial in running:
            beat = trial.system_attrs.get(BEAT_ATTR)
            if isinstance(beat, str):
                # The heartbeat of its creation has no time.
                last = _beat_time(beat) or trial.datetime_start.astimezone(UTC)
                silent[trial._trial_id] = max((now - last).total_seconds(), 0.0)
        return silent

    def get_grace_period(self) -> int:
        """Return the seconds without a heartbeat after which a trial is stale."""
        return self._grace_period

    def get_heartbeat_interval(self) -> int | None:
        """Return the seconds between two heartbeats."""
        return self._heartbeat_interval

    def get_heartbeat_stale_trial_callback(
        self,
    ) -> Callable[[optuna.Study, FrozenTrial], None] | None:
        """Return the function that queues a copy of a stale trial."""
        return self._callback


def _new_beat() -> str:
    """Return a random word and the time."""
    return f"{secrets.token_hex(4)} {datetime.now(UTC).isoformat(timespec='seconds')}"


def _beat_time(beat: str) -> datetime | None:
    _, _, moment = beat.partition(" ")
    try:
        return datetime.fromisoformat(moment).astimezone(UTC)
    except ValueError:
        return None
