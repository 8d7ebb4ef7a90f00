"""Reads what a study keeps of itself, which another version of this package may have written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sgquant_optuna.exceptions import StudyMismatchError

if TYPE_CHECKING:
    import optuna


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
            If another version of this package wrote it.
    """
    stored: Mapping[str, Any] | None = study.user_attrs.get(key)
    if stored is None:
        return None
    if stored.get("version") != version:
        raise StudyMismatchError(
            f"study {study.study_name!r}: expected {what} of version {version}, got "
            f"{stored.get('version')}; use the version of sgquant_optuna that made it"
        )
    return {name: value for name, value in stored.items() if name != "version"}


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
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise StudyMismatchError(
            f"study {study.study_name!r}: expected {what} of this version, got other fields "
            f"({type(error).__name__}: {error}); use the version of sgquant_optuna that made it"
        ) from error
