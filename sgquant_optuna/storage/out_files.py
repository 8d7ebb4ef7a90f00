"""Files that a user asks for by name: replaced whole or not at all, and only regular ones.

A file is written in a hidden folder beside its place. The folder is locked as long as its writer
lives, so the next writer of the same name removes what a killed one has left, or goes on with it
(:func:`resuming`).
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sgquant_optuna.exceptions import SgquantError

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
        with _part_beside(target):  # permissions do not tell: /proc takes no file from anyone
            pass
    return target


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file beside the one that is asked for, and put it in its place when it is whole.

    After any exception, the old file is what it was. A new file has the permissions that the
    user's umask gives, one that is replaced keeps those it has. Links are followed. Of several
    writers at once, the last one that ends wins.

    Args:
        path:
            File to write, or a link to it.

    Yields:
        The path to write to: an empty file in a folder of its own, on the same file system.

    Raises:
        ValueError:
            If the path leads to something else than a regular file, or cannot be written.
    """
    with _refusing(path):
        target, mode = _target(path)
        with _part_beside(target) as part:
            if mode is None:
                mode = stat.S_IMODE(part.stat().st_mode)
            yield part
            with open(part, "rb") as written:
                os.fsync(written.fileno())  # or a crash may leave an empty file under the name
            part.chmod(mode)  # who wrote it may have put a file of its own there
            os.replace(part, target)


@contextmanager
def resuming(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Write a file that takes long, so that a killed writer's work is there for the next one.

    Works as :func:`replacing`, but the folder has one name, and only a mistake in the input
    removes it: after a kill, a stop or a full disk, the next call yields it with all that is
    in it.

    Args:
        path:
            File to write, or a link to it.
        overwrite:
            Whether a file that is there already is replaced.

    Yields:
        The folder; the file ``part`` in it is moved to ``path`` at the end.

    Raises:
        ValueError:
            If there is a file already that shall stay, another process is writing it, or it cannot
            be written.
    """
    with _refusing(path):
        target, mode = _target(path)
        folder = target.parent / f"{_start(target)}resumed.part"
        part = folder / "part"
        # Without it, the writer was killed after it had moved the file to its place.
        _remove_leftovers(target.parent, _start(target), but=folder if part.exists() else None)
        if mode is not None and not overwrite:
            raise ValueError(f"{path}: expected no file yet, got one; remove it, or overwrite it")
        lock = _own_folder(folder)
        try:
            part.touch()
            yield folder
            with open(part, "rb") as written:
                os.fsync(written.fileno())
            if mode is not None:
                part.chmod(mode)
            os.replace(part, target)
            shutil.rmtree(folder, ignore_errors=True)
        except (SgquantError, ValueError):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            os.close(lock)


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


@contextmanager
def _part_beside(target: Path) -> Iterator[Path]:
    """Make an empty file in a hidden folder beside a file, and remove both afterwards."""
    start = _start(target)
    _remove_leftovers(target.parent, start)
    folder, lock = _locked_folder(target.parent, start)
    try:
        part = folder / "part"
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield part
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _start(target: Path) -> str:
    """Return how the folders of all writers of one file begin."""
    return f".sgquant-{zlib.crc32(os.fsencode(target.name)):08x}-"


def _own_folder(folder: Path) -> int:
    """Make a folder, or take it over from a writer that is no more, and lock it."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
            if _lock(lock) is False:
                os.close(lock)
                raise ValueError(
                    f"{folder}: another process writes the same file now; wait for it"
                )
            with suppress(
                FileNotFoundError
            ):  # its last owner may have removed it before we locked
                if os.path.samestat(os.fstat(lock), os.stat(folder)):
                    return lock
            os.close(lock)


def _locked_folder(where: Path, start: str) -> tuple[Path, int]:
    """Make a folder, and lock it by a descriptor; another writer may remove it in between."""
    while True:
        folder = where / f"{start}{secrets.token_hex(8)}.part"
        folder.mkdir(mode=0o700)
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            if _lock(lock) is not False and folder.exists():
                return folder, lock
            os.close(lock)


def _remove_leftovers(where: Path, start: str, but: Path | None = None) -> None:
    """Remove the folders of writers of one name that are no more."""
    with suppress(OSError), os.scandir(where) as entries:
        folders = [e.path for e in entries if e.name.startswith(start) and e.is_dir()]
        for folder in folders:
            if but is not None and folder == str(but):
                continue
            with suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    if _lock(descriptor):
                        shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Lock a folder; ``False`` if another process has it, ``None`` if locks are not known here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


@contextmanager
def _refusing(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: cannot write it ({error.strerror or error})") from error
