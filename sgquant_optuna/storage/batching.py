"""Writes parameters and attributes of a trial that are set together in one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass
class Batch:
    """Parameters and attributes that are not written yet.

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
    """A storage that can write a batch."""

    def write_batch(self, batch: Batch) -> None:
        """Write a batch in one transaction."""


_batches: ContextVar[list[tuple[WritesBatches, Batch]] | None] = ContextVar(
    "batches", default=None
)


@contextmanager
def write_together() -> Iterator[None]:
    """Write the parameters and user attributes that are set within together, at the end.

    Each alone is a transaction, and a trial has twenty of them. System attributes are written at
    once, because a sampler writes its claim and then reads the claims of others. A storage that is
    not ours writes everything at once.
    """
    if _batches.get() is not None:
        yield
        return
    batches: list[tuple[WritesBatches, Batch]] = []
    before = _batches.set(batches)
    try:
        yield
    finally:
        _batches.reset(before)
        for storage, batch in batches:
            storage.write_batch(batch)


def current_batch(storage: WritesBatches) -> Batch | None:
    """Return the batch of a storage inside :func:`write_together`, else ``None``."""
    batches = _batches.get()
    if batches is None:
        return None
    for owner, batch in batches:
        if owner is storage:
            return batch
    batches.append((storage, Batch()))
    return batches[-1][1]
