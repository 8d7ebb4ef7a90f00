"""Reads what a study keeps of itself, which another version of this package may have written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import optuna

from sgquant_optuna.exceptions import StudyMismatchError


@contextmanager
def reading(what: str, study: optuna.Study) -> Iterator[None]:
    """Turn what goes wrong inside, where stored values become objects, into the error of a study.

    A field that is missing, new, or of other values is one that another version knows.

    Args:
        what:
            Is read.
        study:
            Whose it is.

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
