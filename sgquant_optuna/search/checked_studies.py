"""Which studies an objective has compared with itself."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from optuna.storages import BaseStorage
from optuna.study import Study


class CheckedStudies:
    """Studies that were checked, told by storage and name: two storages may share a name."""

    def __init__(self) -> None:
        self._names: WeakKeyDictionary[BaseStorage, set[str]] = WeakKeyDictionary()

    def add(self, study: Study) -> None:
        """Remember a study."""
        self._names.setdefault(study._storage, set()).add(study.study_name)

    def clear(self) -> None:
        """Forget all of them."""
        self._names.clear()

    def __contains__(self, study: Study) -> bool:
        """Tell whether a study was added."""
        return study.study_name in self._names.get(study._storage, set())

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Return what makes an empty one."""
        return CheckedStudies, ()  # another process checks again
