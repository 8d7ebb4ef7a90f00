"""Writes what a trial is told at one time in one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass
class Batch:
    """What waits to be written.

    Args:
        params:
            Arguments of Optuna's ``_set_trial_param``: trial, name, value, distribution, and the
            distribution of that name in other trials, if known.
        attrs:
            User attributes by trial and key.
    """

    params: list[tuple[int, str, float, Any, Any]] = field(default_factory=list)
    attrs: dict[tuple[int, str], Any] = field(default_factory=dict)


class WritesBatches(Protocol):
    """A storage that can wait with its writing."""

    def write_batch(self, batch: Batch) -> None:
        """Write in one transaction."""


_waiting: ContextVar[list[tuple[WritesBatches, Batch]] | None] = ContextVar(
    "waiting", default=None
)


@contextmanager
def write_together() -> Iterator[None]:
    """Let parameters and user attributes that are set within be written together at the end.

    Each alone is a transaction, and a trial has twenty of them. System attributes do not wait: a
    sampler writes its claim and then reads those of others. Where the storage of the study is none
    of ours, everything is written at once as ever.
    """
    if _waiting.get() is not None:
        yield
        return
    waiting: list[tuple[WritesBatches, Batch]] = []
    before = _waiting.set(waiting)
    try:
        yield
    finally:
        _waiting.reset(before)
        for storage, batch in waiting:
            storage.write_batch(batch)


def open_batch(storage: WritesBatches) -> Batch | None:
    """Return what waits for the end of :func:`write_together`, or ``None`` where none is open."""
    waiting = _waiting.get()
    if waiting is None:
        return None
    for owner, batch in waiting:
        if owner is storage:
            return batch
    waiting.append((storage, Batch()))
    return waiting[-1][1]
