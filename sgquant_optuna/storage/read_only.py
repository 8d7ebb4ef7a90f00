"""Marks calls that only read, so that in SQLite they never wait for a writer."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

READING = (
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "get_trial",
    "get_trial_id_from_study_id_trial_number",
)
"""Methods of any storage of Optuna that only read."""
_is_reading: ContextVar[bool] = ContextVar("is_reading", default=False)


@contextmanager
def only_reading() -> Iterator[None]:
    """Mark a block whose transactions write nothing."""
    marker = _is_reading.set(True)
    try:
        yield
    finally:
        _is_reading.reset(marker)


def is_reading() -> bool:
    """Tell whether a transaction that begins now is inside :func:`only_reading`."""
    return _is_reading.get()


def mark_readers(storage: type, names: Iterable[str]) -> None:
    """Run methods of a class inside :func:`only_reading`.

    Args:
        storage:
            Class of a storage.
        names:
            Names of methods that write nothing.
    """

    def reading(method: Any) -> Any:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            with only_reading():
                return method(self, *args, **kwargs)

        return call

    for name in names:
        setattr(storage, name, reading(getattr(storage, name)))
