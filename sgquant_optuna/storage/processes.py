"""The name that a process signs its trials with, and whether such a process is gone."""

from __future__ import annotations

import os
import socket
from pathlib import Path

_PROC = Path("/proc")


def worker_name() -> str:
    """Return ``HOST:PID`` of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def process_mark() -> str | None:
    """Return what tells this process from every other, ever; ``None`` where Linux is not."""
    space, started = _process_space(), _start_time(os.getpid())
    if space is None or started is None:
        return None
    return f"{space} {os.getpid()} {started}"


def is_gone(mark: str) -> bool:
    """Tell whether the process of a mark has surely ended.

    ``False`` as well where that cannot be seen from here: on another machine, or in another
    container.
    """
    try:
        space, pid, started = mark.rsplit(" ", maxsplit=2)
        return space == _process_space() and _start_time(int(pid)) != started
    except ValueError:  # of another version
        return False


def _process_space() -> str | None:
    """Return the running kernel and the table of processes that this process sees."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:
        return None


def _start_time(pid: int) -> str | None:
    """Return when a living process started, in ticks since boot."""
    try:
        # The second field is the command in brackets, and may hold anything.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, started = fields[0], fields[19]
    return None if state in "ZX" else started
