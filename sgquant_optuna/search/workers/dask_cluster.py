"""Worker processes on the machines of an existing Dask cluster."""

from __future__ import annotations

import logging
import signal
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sgquant_optuna.exceptions import SgquantError
from sgquant_optuna.search.workers.stopping import on_signals
from sgquant_optuna.search.workers.worker_processes import WorkerProcesses, say, shared_code

_logger = logging.getLogger(__name__)
_POLL = 0.5  # seconds
_RETRIES = 3  # on another machine of the cluster, after one was lost


def run_on_dask(
    scheduler: str,
    arguments: Sequence[str],
    count: int,
    *,
    environment: Mapping[str, str],
    show: Callable[[str], None] | None = None,
) -> int:
    """Run ``sgquant worker`` several times on a Dask cluster until all have ended.

    Each is a process of its own beside the Dask worker that started it, for torch's random state
    belongs to a process and Dask runs tasks in threads. It opens the study database itself: no
    trial passes through the scheduler. Ctrl+C or SIGTERM here lets all of them give back their
    trials.

    Args:
        scheduler:
            Address, ``tcp://HOST:8786``.
        arguments:
            Arguments of ``sgquant worker``.
        count:
            Number of processes.
        environment:
            Variables of the processes; the scheduler sees them.
        show:
            Function that takes the errors of the processes; the standard error by default.

    Returns:
        Exit code as of :class:`WorkerProcesses`.

    Raises:
        SgquantError:
            If Dask is missing or the scheduler cannot be reached.
    """
    try:
        from distributed import Client, Event
    except ImportError as error:
        raise SgquantError(
            "--engine dask: the package distributed is missing; pip install 'sgquant-optuna[dask]'"
        ) from error
    try:
        client = Client(scheduler, set_as_default=False, timeout=10)
    except (OSError, TimeoutError, ValueError) as error:
        raise SgquantError(f"Dask scheduler {scheduler}: cannot be reached ({error})") from error
    received: list[int] = []
    with client, on_signals(received.append):
        stop = Event(f"sgquant-stop-{uuid.uuid4().hex}", client=client)
        futures = [
            client.submit(
                _task,
                list(arguments),
                dict(environment),
                stop.name,
                key=f"sgquant-worker-{index}-{uuid.uuid4().hex}",
                pure=False,
                retries=_RETRIES,
            )
            for index in range(count)
        ]
        stopped_by = None
        while not all(future.done() for future in futures):
            time.sleep(_POLL)
            if received and stopped_by is None:
                stopped_by = received[0]
                stop.set()
                name = signal.Signals(stopped_by).name
                _logger.warning("%s: the workers give back their trials", name)
        return _exit_code(futures, stopped_by, show or say)


def _exit_code(futures: Sequence[Any], stopped_by: int | None, show: Callable[[str], None]) -> int:
    codes = set()
    shown = set()
    for future in futures:
        if future.status != "finished":
            show(f"a Dask task ended: {future.exception()}")
            codes.add(1)
            continue
        code, errors = future.result()
        codes.add(code)
        for line in errors:
            if line not in shown:
                shown.add(line)
                show(line)
    if (shared := shared_code(codes)) is not None:
        return shared
    if stopped_by is not None:
        return 128 + stopped_by
    return max(codes)


def _task(
    arguments: Sequence[str], environment: Mapping[str, str], stop_name: str
) -> tuple[int, list[str]]:
    """Watch one worker process, in a thread of a Dask worker."""
    from distributed import Event

    stop = Event(stop_name)
    workers = WorkerProcesses(arguments, 1, environment=environment)
    stopping = False
    while workers.watch():
        time.sleep(_POLL)
        if not stopping and stop.is_set():
            stopping = True
            workers.stop()
    return workers.exit_code, workers.errors
