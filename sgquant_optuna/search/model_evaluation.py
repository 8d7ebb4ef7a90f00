"""The measurement of a packed file, of a named model or of a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgquant_optuna.exceptions import StudyMismatchError
from sgquant_optuna.packed.container import read_container
from sgquant_optuna.packed.evaluation import Evaluation, OwnModel, evaluate_packed, on_its_split
from sgquant_optuna.packed.model_file import KIND
from sgquant_optuna.search.study_file import load_study_file
from sgquant_optuna.study.study_reference import StudyReference

_LONGEST_NAME = 200  # characters


def evaluate_file(
    path: str | Path,
    root: str | Path | None = None,
    *,
    study_file: str | None = None,
    test: bool = False,
    repeats: int = 7,
) -> Evaluation:
    """Measure a file of ``sgquant export`` or of ``export_packed``.

    Args:
        path:
            File to measure.
        root:
            Folder of data sets.
        study_file:
            File of the user's own model and graph: ``FILE.py``, ``FILE.py:function`` or
            ``package.module:function``. It is run only because the user names it.
        test:
            Whether to measure the accuracy on test items too.
        repeats:
            Number of interleaved timed runs.

    Raises:
        GraphError:
            If the graph is not that of the file, or has no test items.
        ModelError:
            If the model is of another architecture.
        PackingError:
            If the file is cut, altered, or tells no data set and no study file is given.
        StudyFileError:
            If the study file cannot be run.
        StudyMismatchError:
            If a study file is missing, not needed, or another one.
    """
    fields, _ = read_container(path, KIND, verify=False)
    origin = fields.get("provenance")
    told = origin if isinstance(origin, dict) else {}
    expected = _reference(told)
    if study_file is None:
        if expected is not None:
            raise StudyMismatchError(
                f"{path}: the file is of its user's own model: expected --study with "
                f"{expected.fingerprint}, got none; its maker wrote {expected.text!r:.200}"
            )
        if fields.get("model") is None:
            raise StudyMismatchError(
                f"{path}: the file is of a model that has no name here: expected --study with the "
                f"Python file of its model and graph, got none"
            )
        return evaluate_packed(path, root, test=test, repeats=repeats)
    if isinstance(told.get("dataset"), str):
        raise StudyMismatchError(
            f"{path}: the file is of the data set {told['dataset']!r:.100}: expected no --study "
            f"(nor SGQUANT_STUDY), got {study_file!r}"
        )
    loaded = load_study_file(
        study_file, expected=expected, study_name=str(told.get("study"))[:_LONGEST_NAME]
    )
    data = on_its_split(loaded.own.data, told)
    own = OwnModel(loaded.instance(data), data, loaded.own.forward, loaded.own.task)
    return evaluate_packed(path, own=own, test=test, repeats=repeats)


def _reference(origin: Mapping[str, Any]) -> StudyReference | None:
    """Return the study file that a file was made of; what a file says may be anything."""
    plan = origin.get("plan")
    own = plan.get("own") if isinstance(plan, dict) else None
    if not isinstance(own, dict):
        return None
    text, sha256 = own.get("text"), own.get("sha256")
    if not isinstance(text, str) or not isinstance(sha256, str):
        return None
    try:
        return StudyReference(text, sha256)
    except ValueError:
        return None
