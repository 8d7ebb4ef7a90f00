"""Lets one worker at a time do a task, by a lease in the study that ends when its holder does.

It is Fischer's mutual exclusion: write your name where there is none, wait, and go on if it is
still yours. The holder raises a counter while it works. A counter that stands still belongs to a
holder that was killed, and the next worker takes over. Clocks of different machines are never
compared.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import optuna

from sgquant_optuna.storage.attributes import LEASE_PREFIX
from sgquant_optuna.storage.processes import holder_name, process_of

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeaseTimes:
    """Times of a lease, in seconds.

    Args:
        settle:
            Time from writing a name to reading it back: longer than the storage takes to write. If
            a write takes longer, two workers may do the task, and the later result counts.
        heartbeat:
            Time between two heartbeats of the holder.
        timeout:
            Time without a heartbeat until the next worker takes over.
        poll:
            Time between two reads of a lease that another worker holds.
    """

    settle: float = 0.5
    heartbeat: float = 5.0
    timeout: float = 30.0
    poll: float = 0.5


@contextlib.contextmanager
def exclusive(
    study: optuna.Study,
    task: str,
    *,
    unless: Callable[[], bool],
    times: LeaseTimes | None = None,
) -> Iterator[bool]:
    """Wait until no other worker does a task of a study, or until the task is done.

    Args:
        study:
            Study whose system attributes hold the lease.
        task:
            Name of the task; different tasks do not wait for each other.
        unless:
            Function that tells whether the task is done already.
        times:
            Times of the lease; those of :class:`LeaseTimes` by default.

    Yields:
        Whether this worker has to do the task; ``False`` if it is done.
    """
    times = times or LeaseTimes()
    lease = _Lease(study, task)
    if not _acquire(lease, unless, times):
        yield False
        return
    stop = threading.Event()
    beating = threading.Thread(target=_beat, args=(lease, stop, times.heartbeat), daemon=True)
    beating.start()
    try:
        yield True
    finally:
        stop.set()
        beating.join()
        if lease.is_ours(lease.read()):
            lease.write(None)


class _Lease:
    """The system attribute of a study that names the holder of a task.

    Args:
        study:
            Study that has the attribute.
        task:
            Name of the task.
    """

    def __init__(self, study: optuna.Study, task: str) -> None:
        self.task = task
        self.name = holder_name()
        self.storage = study._storage
        self._study_id = study._study_id
        self._key = LEASE_PREFIX + task

    def read(self) -> dict[str, Any] | None:
        value = self.storage.get_study_system_attrs(self._study_id).get(self._key)
        # What another program wrote there frees the lease.
        is_ours = isinstance(value, dict) and isinstance(value.get("by"), str) and value["by"]
        return value if is_ours else None

    def write(self, count: int | None) -> None:
        """Write our name with a counter, or free the lease."""
        value: Any = None if count is None else {"by": self.name, "beat": count}
        self.storage.set_study_system_attr(self._study_id, self._key, value)

    def is_ours(self, value: dict[str, Any] | None) -> bool:
        return value is not None and value["by"] == self.name


def _acquire(lease: _Lease, unless: Callable[[], bool], times: LeaseTimes) -> bool:
    seen, since, logged = None, time.monotonic(), None
    while not unless():
        value = lease.read()
        if value != seen:
            seen, since = value, time.monotonic()
        if value is None or time.monotonic() - since > times.timeout:
            lease.write(0)
            time.sleep(times.settle)
            if lease.is_ours(lease.read()):
                # Between the check above and our write, the holder before may have finished.
                if not unless():
                    return True
                lease.write(None)
                return False
        elif logged != value["by"]:
            logged = value["by"]
            _logger.info("%s: waiting for worker %s", lease.task, process_of(str(logged)))
        time.sleep(times.poll)
    return False


def _beat(lease: _Lease, stop: threading.Event, interval: float) -> None:
    count = 0
    try:
        while not stop.wait(interval):
            count += 1
            try:
                lease.write(count)
            except KeyError:  # the study was deleted; its worker finds out
                return
            except Exception as error:  # a database that restarts; the next heartbeat follows
                _logger.warning("lease: cannot renew it (%s)", error)
    finally:
        lease.storage.remove_session()  # of this thread
