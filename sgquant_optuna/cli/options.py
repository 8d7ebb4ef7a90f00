"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from sgquant_optuna.storage.artifacts import ArtifactStore

Storage = Annotated[
    str | None,
    typer.Option(
        envvar="SGQUANT_STORAGE",
        show_default="storage/sgquant.db",
        help="URL of the study database, or a file for SQLite.",
    ),
]

Artifacts = Annotated[
    str | None,
    typer.Option(
        envvar="SGQUANT_ARTIFACTS",
        show_default="artifacts next to the database file",
        help="Folder of trained models and other files: a path, s3://BUCKET or gs://BUCKET.",
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(envvar="SGQUANT_DATA", show_default="data", help="Folder of data sets."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
Wait = Annotated[
    float | None,
    typer.Option(
        min=0,
        show_default="300, at a terminal 0",
        help="Seconds that the start waits for a database server that does not answer.",
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Show no progress: the result and errors only.")
]
StudyName = Annotated[
    str | None,
    typer.Option(
        "--name",
        show_default="MODEL-DATASET-GRANULARITY or FILE-GRANULARITY",
        help="Name of the study.",
    ),
]
StudyFile = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="FILE.py",
        envvar="SGQUANT_STUDY",
        show_default=False,
        help="The file of a study of your own models: FILE.py, FILE.py:function or "
        "package.module:function.",
    ),
]


def _complete_study_name(context: typer.Context, incomplete: str) -> list[str]:
    """Offer the studies of the storage that the line names; nothing if it cannot be read."""
    import optuna

    from sgquant_optuna.cli.logs import quiet_optuna
    from sgquant_optuna.storage import open_storage

    quiet_optuna()
    try:
        opened = open_storage(context.params.get("storage"), create=False)
        names = optuna.get_all_study_names(opened)
    except Exception:  # a completion never shows an error in the middle of a line
        return []
    return sorted(name for name in names if name.startswith(incomplete))


StudyArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[NAME]",
        help="Name of the study; may be left out if there is only one.",
        autocompletion=_complete_study_name,
    ),
]


def seconds_to_wait(wait: float | None) -> float:
    """Return ``--wait`` or its default: who sits at a terminal sees a typing mistake at once."""
    from sgquant_optuna.storage import RETRY_SECONDS

    if wait is not None:
        return wait
    return 0.0 if sys.stdin is not None and sys.stdin.isatty() else RETRY_SECONDS


def open_both(
    storage: str | None, artifacts: str | None, *, create: bool = True, wait: float = 0.0
) -> tuple[BaseStorage, ArtifactStore]:
    """Open the study database of a command line and its artifact store, once for the process."""
    from sgquant_optuna.storage import open_storage
    from sgquant_optuna.storage.artifacts import open_artifacts

    opened = open_storage(storage, create=create, wait=wait)
    return opened, open_artifacts(artifacts, storage_url=storage)


def integers(text: str, *, what: str) -> tuple[int, ...]:
    """Read ``"1,2,4,8"``.

    Raises:
        ValueError:
            If a part is not a whole number.
    """
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{what}: expected numbers such as 1,2,4,8, got {text!r}") from None


def assignments(texts: list[str], *, what: str) -> dict[str, int]:
    """Read ``["conv1=8", "conv2/attention=4"]``.

    Raises:
        ValueError:
            If one is not of the form ``NAME=BITS``.
    """
    pairs = {}
    for text in texts:
        name, _, width = text.rpartition("=")
        if not name or not width.isdigit():
            raise ValueError(f"{what}: expected NAME=BITS such as conv1=8, got {text!r}")
        pairs[name] = int(width)
    return pairs
