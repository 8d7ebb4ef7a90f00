"""Whether a file can be written, told before its content is computed."""

from __future__ import annotations

import tempfile
from pathlib import Path


def check_out_file(path: str | Path) -> None:
    """Check that a file can be written where it shall lie; nothing is left there.

    Raises:
        ValueError:
            If the path is a folder, or its own folder is missing or takes no files.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ValueError(f"{path}: expected a file to write, got a folder")
        if not path.parent.is_dir():
            raise ValueError(f"{path}: expected a file in an existing folder, got {path.parent}")
        # Permissions do not tell: some file systems take no file from anyone.
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{path}: cannot write it ({error.strerror})") from error
