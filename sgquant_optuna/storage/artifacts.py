"""Opens artifact stores: files that belong to a study but are too large for its database."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeGuard

from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore, GCSArtifactStore

from sgquant_optuna.exceptions import ArtifactError, StorageError
from sgquant_optuna.storage.urls import DEFAULT_FILE, file_of, resolve_url

ARTIFACTS_VARIABLE = "SGQUANT_ARTIFACTS"

_FOLDER = "artifacts"
_BUCKETS: dict[str, tuple[Any, str]] = {
    "s3": (Boto3ArtifactStore, "boto3"),
    "gs": (GCSArtifactStore, "google-cloud-storage"),
}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


class ArtifactStore(Protocol):
    """What Optuna and this package ask of an artifact store; the stores of Optuna comply."""

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open an artifact for reading."""

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write an artifact."""

    def remove(self, artifact_id: str) -> None:
        """Remove an artifact."""


def open_artifacts(
    where: str | Path | None = None, *, storage_url: str | Path | None
) -> ArtifactStore:
    """Open the artifact store of a study database, for functions of ``optuna.artifacts``.

    A folder is created when the first file is written, so opening a store writes nothing.

    Args:
        where:
            Folder, ``s3://BUCKET`` or ``gs://BUCKET``. By default ``$SGQUANT_ARTIFACTS``, or
            else the folder ``artifacts`` next to the study database if that is a file, or else
            ``storage/artifacts``.
        storage_url:
            Study database as of :func:`sgquant_optuna.open_storage`, ``None`` for its default.

    Raises:
        ArtifactError:
            If ``where`` has another form, or if its package or its credentials are missing.
    """
    where = where or os.environ.get(ARTIFACTS_VARIABLE) or _beside(storage_url)
    if not _is_url(where):
        folder = Path(where)
        if folder.exists() and not folder.is_dir():
            raise ArtifactError(f"artifacts {folder}: expected a folder, got a file")
        return FolderArtifactStore(folder)
    scheme, _, bucket = where.partition("://")
    if scheme not in _BUCKETS or not re.fullmatch(r"[a-z0-9._-]+", bucket):
        raise ArtifactError(
            f"artifacts: expected a folder, s3://BUCKET or gs://BUCKET, got {where}"
        )
    kind, package = _BUCKETS[scheme]
    try:
        store: ArtifactStore = kind(bucket)
    except ImportError as error:
        raise ArtifactError(
            f"artifacts {where}: the package {package} is missing; pip install {package}"
        ) from error
    except Exception as error:  # each cloud has its own errors for missing credentials
        raise ArtifactError(f"artifacts {where}: {error}") from error
    return store


class FolderArtifactStore(FileSystemArtifactStore):
    """Optuna's artifact store in a folder, with complete files under plain names only.

    A file appears when it is complete: no reader sees a part, and no killed writer leaves one.

    Args:
        folder:
            Folder; it is created when the first file is written.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open an artifact for reading.

        Raises:
            optuna.artifacts.exceptions.ArtifactNotFound:
                If no artifact has this name.
            ValueError:
                If the name is not plain.
        """
        _check_name(artifact_id)
        return super().open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write an artifact; the last of several writers wins.

        Raises:
            ArtifactError:
                If the folder cannot be written.
            ValueError:
                If the name is not plain.
        """
        _check_name(artifact_id)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", delete=False) as part:
                try:
                    shutil.copyfileobj(content_body, part)
                    part.flush()
                    os.fsync(part.fileno())
                    os.chmod(part.name, 0o644)  # other users of the study read it too
                    os.replace(part.name, self.folder / artifact_id)
                except BaseException:
                    os.unlink(part.name)
                    raise
        except OSError as error:
            raise ArtifactError(
                f"artifacts {self.folder}: cannot write ({error.strerror})"
            ) from error

    def remove(self, artifact_id: str) -> None:
        """Remove an artifact.

        Raises:
            optuna.artifacts.exceptions.ArtifactNotFound:
                If no artifact has this name.
            ValueError:
                If the name is not plain.
        """
        _check_name(artifact_id)
        super().remove(artifact_id)


def shown_artifacts(where: str | Path) -> str:
    """Return a folder of artifacts as it is called from any folder, or a bucket as it is."""
    return where if _is_url(where) else str(Path(where).absolute())


def _is_url(where: str | Path) -> TypeGuard[str]:
    return isinstance(where, str) and "://" in where


def _check_name(name: str) -> None:
    # Identifiers come from the database, where others may write.
    if not _PLAIN_NAME.fullmatch(name):
        raise ValueError(f"artifact: expected a plain name, got {name!r}")


def _beside(storage_url: str | Path | None) -> Path:
    try:
        file = file_of(resolve_url(storage_url))
    except StorageError:  # opening the storage raises it, too
        file = None
    return (file or DEFAULT_FILE).parent / _FOLDER
