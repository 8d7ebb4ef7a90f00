"""Names the attribute whose value a database refuses, because it is too long for its column.

MariaDB holds 65,535 bytes in a value, and every server 512 characters in a name. No later try
helps, so it is no outage: the caller is told at once.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.storage.retries import message, refused_value

if TYPE_CHECKING:
    from sgquant_optuna.storage.batching import Batch


_LONGEST_NAME = 512  # characters


@contextmanager
def naming(values: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Name the longest of some attributes if the database refuses a value.

    Args:
        values:
            Function that returns the attributes that are written inside the block.

    Raises:
        StorageError:
            If the database refuses a value.
    """
    try:
        yield
    except Exception as error:
        refused = refused_value(error)
        if refused is None:
            raise
        sizes = {name: _nbytes(name, value) for name, value in values().items()}
        # A name that no server holds comes before a long value.
        name = max(sizes, key=lambda one: (len(one) > _LONGEST_NAME, sizes[one]), default="")
        shown = name if len(name) <= 80 else f"{name[:80]}..."
        raise StorageError(
            f"attribute {shown!r}: the database refuses it, {sizes.get(name, 0):,} bytes with its "
            f"name ({message(refused)}); shorten it, or use SQLite or PostgreSQL"
        ) from error


def name_refused(storage: type, names: Iterable[str]) -> None:
    """Make methods of a class name the attribute that they cannot write.

    Args:
        storage:
            Class of a storage.
        names:
            Names of methods whose second and third argument are the name and the value.
    """

    def telling(method: Any) -> Any:
        parameters = inspect.signature(method)

        @functools.wraps(method)
        def call(*given: Any, **by_name: Any) -> Any:
            def values() -> dict[str, Any]:
                _, _, name, value, *_ = parameters.bind(*given, **by_name).arguments.values()
                return {name: value}

            with naming(values):
                return method(*given, **by_name)

        return call

    for name in names:
        setattr(storage, name, telling(getattr(storage, name)))


def attributes_of(batch: Batch) -> dict[str, Any]:
    """Return the parameters and attributes of a batch by their names."""
    params = {param[1]: param[2] for param in batch.params}
    return {**params, **{name: value for (_, name), value in batch.attrs.items()}}


def _nbytes(name: str, value: Any) -> int:
    return len(name.encode()) + len(json.dumps(value).encode())
