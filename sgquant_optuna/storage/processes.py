"""Who runs a trial: the one file that writes or reads the identity of a process.

A process has two identities. Its *name* ``HOST:PID`` is for people, in logs and reports. Its
*mark* (kernel, process space, process id, start time) differs from that of every other process,
past or present, so another process of the machine can tell whether this one has ended.

A trial carries the mark twice: from its creation (``sgquant:birth``, with a token that makes the
creation repeatable) and from the moment it is measured (``sgquant:process``).
"""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from sgquant_optuna.storage.attributes import BIRTH_ATTR, PROCESS_ATTR

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, Trial

_PROC = Path("/proc")


def process_name() -> str:
    """Return ``HOST:PID`` of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def holder_name() -> str:
    """Return ``HOST:PID WORD``, different at each call: threads of one process may compete."""
    return f"{process_name()} {uuid.uuid4().hex[:8]}"


def process_of(holder: str) -> str:
    """Return ``HOST:PID`` of the process that a :func:`holder_name` belongs to."""
    return holder.split()[0]


def process_mark() -> str | None:
    """Return the mark of this process; ``None`` on systems other than Linux."""
    space, started = _process_space(), _start_time(os.getpid())
    if space is None or started is None:
        return None
    return f"{space} {os.getpid()} {started}"


def is_gone(mark: str) -> bool:
    """Tell whether the process of a mark has surely ended.

    ``False`` as well where that cannot be seen from here: on another machine, in another
    container, or behind ``/proc`` that hides the processes of other users.
    """
    try:
        space, text, started = mark.rsplit(" ", maxsplit=2)
        pid = int(text)
    except ValueError:  # of another version
        return False
    if pid <= 0 or space != _process_space():
        return False
    now = _start_time(pid)
    return now != started and not (now is None and _is_hidden(pid))


def birth_signature(token: str, *, runs_here: bool) -> list[str | None]:
    """Return the value of ``sgquant:birth`` of a new trial.

    Args:
        token:
            Word that no other creation of a trial uses.
        runs_here:
            Whether this process runs the trial; a queued one is run by anybody.
    """
    return [token, process_mark() if runs_here else None]


def sign(trial: Trial) -> None:
    """Record that this process measures a trial."""
    trial.storage.set_trial_system_attr(trial._trial_id, PROCESS_ATTR, _signature(trial))


def unsign(storage: BaseStorage, trial: Trial | FrozenTrial) -> None:
    """Record that no process measures a trial."""
    storage.set_trial_system_attr(trial._trial_id, PROCESS_ATTR, None)


def is_signed_here(trial: FrozenTrial) -> bool:
    """Tell whether this process measures a trial; ``False`` where processes have no mark."""
    own = _signature(trial)
    return own[1] is not None and trial.system_attrs.get(PROCESS_ATTR) == own


def is_signer_gone(trial: FrozenTrial) -> bool | None:
    """Tell whether the process that runs a trial has surely ended; ``None`` if nobody signed."""
    number, mark = _pair(trial.system_attrs.get(PROCESS_ATTR))
    if number != trial.number:  # killed before it signed: the mark of its creation is left
        _, mark = _pair(trial.system_attrs.get(BIRTH_ATTR))
    return is_gone(mark) if isinstance(mark, str) else None


def _pair(value: object) -> tuple[object, object]:
    """Return the two parts of a stored signature; nothing if another program wrote it."""
    return (value[0], value[1]) if isinstance(value, list) and len(value) == 2 else (None, None)


def _signature(trial: Trial | FrozenTrial) -> list[int | str | None]:
    # With the number, because the copy of a failed trial inherits its attributes.
    return [trial.number, process_mark()]


def _process_space() -> str | None:
    """Return the running kernel and the table of processes that this process sees."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:
        return None


def _is_hidden(pid: int) -> bool:
    """Tell whether there is a process of another user, which /proc does not show (hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not (_PROC / str(pid)).exists()  # a zombie is shown
    except (OSError, OverflowError):
        pass
    return False


def _start_time(pid: int) -> str | None:
    """Return when a living process started, in ticks since boot."""
    try:
        # The second field is the command in brackets, and may hold anything.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, started = fields[0], fields[19]
    return None if state in "ZX" else started
