"""Names the process that holds the write lock of an SQLite file; Linux tells it."""

from __future__ import annotations

from pathlib import Path

_LOCKS = Path("/proc/locks")
_WRITE_LOCK = (
    120  # byte of the index file; see "WAL-Index Locks" in SQLite's "WAL-mode File Format"
)
_STOPPED = ("T", "t")  # states of a process, as in proc(5)


def lock_holder(file: Path) -> str | None:
    """Return what is known of the process that writes to an SQLite file now.

    The file is not opened: closing it would drop the locks that this process holds itself.

    Args:
        file:
            SQLite file with a write-ahead log.

    Returns:
        Words such as ``"process 123 holds the lock"``; ``None`` if nobody of this machine does,
        or the system does not tell.
    """
    try:
        inode = file.with_name(f"{file.name}-shm").stat().st_ino
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        # 7: POSIX  ADVISORY  WRITE 123 08:01:4567 120 120
        words = line.split()
        if len(words) != 8 or words[3] != "WRITE" or not words[4].isdigit():
            continue
        if words[5].rpartition(":")[2] == str(inode) and words[6:] == [str(_WRITE_LOCK)] * 2:
            holder = words[4]
            if _state(holder) in _STOPPED:
                return f"process {holder} holds the lock and is paused; resume or end it"
            return f"process {holder} holds the lock"
    return None


def _state(pid: str) -> str | None:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return status.rpartition(")")[2].split()[0]
