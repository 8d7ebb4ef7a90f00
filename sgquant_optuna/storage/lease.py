"""One worker at a time: a lease kept in the study, that ends when its holder does.

It is Fischer's mutual exclusion: write your name where none is, wait, and go on if it is still
yours. The holder counts on while it works; a count that stands still belongs to a holder that was
killed, and the next one takes over. Clocks of different machines are never compared.
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
    """How long a lease waits, in seconds.

    Args:
        settle:
            Between writing a name and reading it back: longer than the storage takes to write.
            Should it take longer, two workers may do the work, and the later result counts.
        beat:
            Between two signs of life.
        patience:
            Without a sign of life until the next worker takes over.
        poll:
            Between two looks at a lease that another worker holds.
    """

    settle: float = 0.5
    beat: float = 5.0
    patience: float = 30.0
    poll: float = 0.5


@contextlib.contextmanager
def exclusive(
    study: optuna.Study,
    task: str,
    *,
    unless: Callable[[], bool],
    times: LeaseTimes | None = None,
) -> Iterator[bool]:
    """Wait until nobody else does a task of a study, or until it needs no doing.

    Args:
        study:
            Its system attributes hold the lease.
        task:
            Name of the task; those of other names do not wait for each other.
        unless:
            Whether the task is done already.
        times:
            How long to wait for what.

    Yields:
        Whether the task is ours to do; ``False`` if another worker has done it.
    """
    times = times or LeaseTimes()
    key = LEASE_PREFIX + task
    name = holder_name()

    def read() -> dict[str, Any] | None:
        return study._storage.get_study_system_attrs(study._study_id).get(key)

    def write(lease: dict[str, Any] | None) -> None:
        study._storage.set_study_system_attr(study._study_id, key, lease)

    if not _acquire(read, write, name, task, unless, times):
        yield False
        return
    stop = threading.Event()
    beating = threading.Thread(
        target=_beat, args=(study, write, name, stop, times.beat), daemon=True
    )
    beating.start()
    try:
        yield True
    finally:
        stop.set()
        beating.join()
        lease = read()
        if lease is not None and lease["by"] == name:
            write(None)


def _acquire(
    read: Callable[[], dict[str, Any] | None],
    write: Callable[[dict[str, Any] | None], None],
    name: str,
    task: str,
    unless: Callable[[], bool],
    times: LeaseTimes,
) -> bool:
    seen, since, told = None, time.monotonic(), None
    while not unless():
        lease = read()
        if lease != seen:
            seen, since = lease, time.monotonic()
        if lease is None or time.monotonic() - since > times.patience:
            write({"by": name, "beat": 0})
            time.sleep(times.settle)
            lease = read()
            if lease is not None and lease["by"] == name:
                # Between the look above and ours becoming visible, its holder may have finished.
                if not unless():
                    return True
                write(None)
                return False
        elif told != lease["by"]:
            told = lease["by"]
            _logger.info("%s: waiting for worker %s", task, process_of(told))
        time.sleep(times.poll)
    return False


def _beat(
    study: optuna.Study,
    write: Callable[[dict[str, Any] | None], None],
    name: str,
    stop: threading.Event,
    interval: float,
) -> None:
    count = 0
    try:
        while not stop.wait(interval):
            count += 1
            try:
                write({"by": name, "beat": count})
            except Exception as error:  # a database that restarts; the next beat comes
                _logger.warning("lease: cannot renew it (%s)", error)
    finally:
        study._storage.remove_session()  # of this thread
