"""Opens a study for reading, without torch."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.storages import BaseStorage

from sgquant_optuna.exceptions import StudyNotFoundError
from sgquant_optuna.storage import open_storage


def load_study(
    study_name: str | None = None,
    *,
    storage: str | Path | BaseStorage | None = None,
) -> optuna.Study:
    """Open a study for reading.

    Args:
        study_name:
            Name of the study; may be left out if the storage holds a single one.
        storage:
            URL, file of SQLite, or Optuna storage; the local default if ``None``.

    Raises:
        StorageError:
            If the storage cannot be opened.
        StudyNotFoundError:
            If there is no such study, or several and no name.
    """
    if isinstance(storage, BaseStorage):
        opened = storage
    else:
        opened = open_storage(storage, create=False)
    names = optuna.get_all_study_names(opened)
    if study_name is None and len(names) == 1:
        study_name = names[0]
    if study_name not in names:
        known = ", ".join(sorted(names)) or "no study at all"
        wanted = "one study name" if study_name is None else f"study {study_name!r}"
        raise StudyNotFoundError(f"expected {wanted}; the storage holds {known}")
    return optuna.load_study(study_name=study_name, storage=opened)
