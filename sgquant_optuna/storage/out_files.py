"""Files that a user asks for by name: replaced whole or not at all, and only regular ones."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "a device"),
)


def check_out_file(path: str | Path) -> Path:
    """Check, before its content is computed, that a file can be written; nothing is left there.

    Args:
        path:
            File to write, or a link to it.

    Returns:
        The file itself: what a link leads to, else the path.

    Raises:
        ValueError:
            If the path leads to something else than a regular file, or its folder is missing or
            takes no files.
    """
    with _refusing(path):
        target, _ = _target(path)
        part = _create_beside(target)  # permissions do not tell: /proc takes no file from anyone
        part.unlink()
    return target


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file beside the one that is asked for, and put it in its place when it is whole.

    After any exception, the old file is what it was. A new file has the permissions that the
    user's umask gives, one that is replaced keeps those it has. Links are followed.

    Args:
        path:
            File to write, or a link to it.

    Yields:
        The path to write to: an empty file in the same folder.

    Raises:
        ValueError:
            If the path leads to something else than a regular file, or cannot be written.
    """
    with _refusing(path):
        target, mode = _target(path)
        part = _create_beside(target)
        try:
            yield part
            with open(part, "rb") as written:
                os.fsync(written.fileno())  # or a crash may leave an empty file under the name
            if mode is not None:
                part.chmod(mode)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)


def write_out_file(path: str | Path, text: str) -> None:
    """Write a text in UTF-8 as a file that a user asked for.

    Raises:
        ValueError:
            If the path leads to something else than a regular file, or cannot be written.
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def _target(path: str | Path) -> tuple[Path, int | None]:
    """Return the file behind all links, and its permissions if it exists."""
    target = Path(os.path.realpath(path) if os.path.islink(path) else path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if not target.parent.is_dir():
            raise ValueError(
                f"{path}: expected a file in an existing folder, got {Path(path).parent}"
            ) from None
        return target, None
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise ValueError(f"{path}: expected a file to write, got {kind}")
    # Renaming needs no permission to write the file that is replaced; who withdrew it meant it.
    with open(target, "ab"):
        pass
    return target, stat.S_IMODE(mode)


def _create_beside(target: Path) -> Path:
    part = target.with_name(f".sgquant-{secrets.token_hex(8)}.part")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return part


@contextmanager
def _refusing(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: cannot write it ({error.strerror or error})") from error
