"""Tells that a study was deleted under a worker, in one line instead of what fell over it.

Each call to a study that is gone fails in its own way: no row, a foreign key that points nowhere,
an error inside a proxy, a variable that Optuna never set. So no error is read here. Once something
has failed, the storage is asked whether the study is there still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna

from sgquant_optuna.exceptions import StudyDeletedError
from sgquant_optuna.storage import may_pass


def is_deleted(study: optuna.Study) -> bool:
    """Ask the storage whether a study is gone; another one may have its name by now."""
    try:
        # Not the name of the id: a proxy remembers that.
        return study._storage.get_study_id_from_name(study.study_name) != study._study_id
    except KeyError:
        return True


@contextmanager
def telling_deletion(study: optuna.Study) -> Iterator[None]:
    """Raise an error of ours where something fails because a study was deleted.

    Raises:
        StudyDeletedError:
            If the block failed and the storage does not hold the study any more.
    """
    try:
        yield
    except StudyDeletedError:
        raise
    except Exception as error:
        raise_if_deleted(study, error)
        raise


def raise_if_deleted(study: optuna.Study, error: Exception) -> None:
    """Raise an error of ours if a study was deleted, after something has failed with an error.

    Raises:
        StudyDeletedError:
            If the storage does not hold the study any more.
    """
    # Whether a database that is away holds it cannot be asked; it is after the outage.
    if isinstance(error, StudyDeletedError) or may_pass(error) or not is_deleted(study):
        return
    raise deletion_of(study) from None


def deletion_of(study: optuna.Study) -> StudyDeletedError:
    """Return the error that tells of a deletion."""
    said = f"study {study.study_name!r} was deleted, or renamed; its workers end"
    return StudyDeletedError(said)


class WorkersStudy(optuna.Study):
    """A study whose ``optimize`` tells in one line that it was deleted."""

    @classmethod
    def of(cls, study: optuna.Study) -> WorkersStudy:
        """Return the same study, told of its deletion."""
        study.__class__ = cls
        assert isinstance(study, cls)
        return study

    def optimize(self, func: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Measure trials; see Optuna's base class.

        Raises:
            StudyDeletedError:
                If the study was deleted meanwhile.
        """
        with telling_deletion(self):
            super().optimize(func, *arguments, **options)
