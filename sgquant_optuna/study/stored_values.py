"""Reads what a study keeps of itself: another version or another program may have written it.

Values that grow with the number of sites are stored as compressed text, because MariaDB holds no
attribute above 64 KiB. Short ones stay as they are, so that queries may read them.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sgquant_optuna.exceptions import StudyMismatchError

if TYPE_CHECKING:
    import optuna

_COMPRESSED = "zlib+base64"
_LONG = 16_000  # characters of JSON from which a value is compressed
_LARGEST = 1 << 28  # bytes that a compressed value may take

_logger = logging.getLogger(__name__)
_told: set[str] = set()


def compact(value: Any) -> Any:
    """Return a value for a storage: as it is, or compressed if its JSON is long."""
    text = json.dumps(value, separators=(",", ":"))
    if len(text) < _LONG:
        return value
    return {_COMPRESSED: base64.b64encode(zlib.compress(text.encode(), 9)).decode()}


def expanded(value: Any) -> Any:
    """Return what :func:`compact` was given.

    Raises:
        ValueError:
            If the text is damaged.
    """
    if not (isinstance(value, Mapping) and set(value) == {_COMPRESSED}):
        return value
    try:
        stream = zlib.decompressobj()
        content = stream.decompress(base64.b64decode(value[_COMPRESSED], validate=True), _LARGEST)
        if not stream.eof:
            raise ValueError("it is cut, or too long")
        return json.loads(content)
    except (TypeError, ValueError, zlib.error, RecursionError) as error:
        raise ValueError(f"compressed value: it is damaged ({error})") from error


def stored_fields(
    study: optuna.Study, key: str, *, what: str, version: int
) -> Mapping[str, Any] | None:
    """Return the fields under a key of a study, or ``None`` where it has none.

    Args:
        study:
            Study whose user attributes are read.
        key:
            Name of the attribute; its fields name the version that wrote them.
        what:
            Name of the value, for the error.
        version:
            Version that can be read.

    Raises:
        StudyMismatchError:
            If another version of this package wrote it, or another program.
    """
    stored = stored_mapping(study, key, what=what)
    if stored is None:
        return None
    if stored.get("version") != version:
        raise StudyMismatchError(
            f"study {study.study_name!r}: expected {what} of version {version}, got "
            f"{stored.get('version')!r}; use the version of sgquant_optuna that made it"
        )
    return {name: value for name, value in stored.items() if name != "version"}


def stored_mapping(study: optuna.Study, key: str, *, what: str) -> Mapping[str, Any] | None:
    """Return the object under a key of a study, or ``None`` where it has none.

    Raises:
        StudyMismatchError:
            If it is no object.
    """
    stored = study.user_attrs.get(key)
    if stored is None:
        return None
    with reading(what, study):
        found = expanded(stored)
        if not isinstance(found, Mapping):
            raise TypeError(f"attribute {key} is a {type(found).__name__}")
        return found


@contextmanager
def reading(what: str, study: optuna.Study) -> Iterator[None]:
    """Turn what goes wrong inside, where stored values become objects, into the error of a study.

    A field that is missing, new, or of other values is one that another version knows.

    Args:
        what:
            Name of the value.
        study:
            Study that holds it.

    Raises:
        StudyMismatchError:
            If a value does not fit.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise StudyMismatchError(
            f"study {study.study_name!r}: expected {what} of this version, got other fields "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); use the version of "
            f"sgquant_optuna that made it"
        ) from error


def finite(value: Any, name: str) -> float:
    """Return a stored number.

    Raises:
        TypeError:
            If it is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{name}: expected a finite number, got {value!r:.60}")
    return float(value)


def tell_once(message: str) -> None:
    """Log a line of what is left out, once in the life of the process."""
    if message not in _told:
        _told.add(message)
        _logger.warning("%s", message)
