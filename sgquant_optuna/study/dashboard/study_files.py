"""Files that belong to a study, in its artifact store, shown by the dashboard."""

from __future__ import annotations

import io
import json
import mimetypes
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.artifacts import get_all_artifact_meta
from optuna.artifacts.exceptions import ArtifactNotFound

from sgquant_optuna.storage.attributes import ARTIFACT_PREFIX

if TYPE_CHECKING:
    from sgquant_optuna.storage.artifacts import ArtifactStore

MODEL_FILE = "best_model.sgq"


def attach_best_model(study: optuna.Study, artifact_store: ArtifactStore, path: str | Path) -> str:
    """Offer a packed model for download on the dashboard's page of its study.

    Args:
        study:
            The study that found its widths.
        artifact_store:
            Artifact store of the study.
        path:
            The packed model.

    Returns:
        Its identifier in the store. A model that was attached before is replaced.

    Raises:
        OSError:
            If the file cannot be read.
    """
    return put_study_file(study, artifact_store, MODEL_FILE, Path(path).read_bytes())


def put_study_file(
    study: optuna.Study, artifact_store: ArtifactStore, name: str, content: bytes
) -> str:
    """Write a file of a study, in the place of the one of that name.

    Args:
        study:
            The study.
        artifact_store:
            Artifact store of the study.
        name:
            Name that the dashboard shows; its ending gives the type.
        content:
            The bytes.

    Returns:
        The identifier in the store.
    """
    known = {meta.filename: meta.artifact_id for meta in get_all_artifact_meta(study)}
    # The same identifier again, so that links to it live on and old versions leave no waste.
    artifact_id = known.get(name) or str(uuid.uuid4())
    artifact_store.write(artifact_id, io.BytesIO(content))
    if name not in known:
        mimetype, encoding = mimetypes.guess_type(name)
        described = {
            "artifact_id": artifact_id,
            "filename": name,
            "mimetype": mimetype or "application/octet-stream",
            "encoding": encoding,
        }
        study._storage.set_study_system_attr(
            study._study_id, ARTIFACT_PREFIX + artifact_id, json.dumps(described)
        )
    return artifact_id


def are_files_missing(study: optuna.Study, artifact_store: ArtifactStore) -> bool:
    """Tell whether a file of a study is not in a store, as when that is on another machine."""
    try:
        for meta in get_all_artifact_meta(study):
            artifact_store.open_reader(meta.artifact_id).close()
    except ArtifactNotFound:
        return True
    return False
