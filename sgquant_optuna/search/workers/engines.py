"""Where worker processes run: in this process, beside it, or on a Dask cluster."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.storages import BaseStorage

from sgquant_optuna.search.preparation import join_search
from sgquant_optuna.search.workers.stopping import (
    PARENT_MARGIN,
    Stopped,
    Stopper,
    ended_after,
    stop_with_parent,
)
from sgquant_optuna.search.workers.worker import run_worker
from sgquant_optuna.search.workers.worker_processes import WorkerProcesses

if TYPE_CHECKING:
    from sgquant_optuna.storage.artifacts import ArtifactStore
    from sgquant_optuna.study.study_reference import StudyReference

_logger = logging.getLogger(__name__)
_POLL = 0.25  # seconds between two looks at the processes


def run_here(
    study: optuna.Study,
    storage: BaseStorage,
    artifacts: ArtifactStore,
    *,
    root: Path | None,
    device: str,
    own: StudyReference | None,
    n_trials: int | None,
    timeout: float | None,
    grace: float,
    parent: int | None,
) -> int:
    """Be one worker; return the exit code."""
    if parent is not None:
        stop_with_parent(parent)
    stopper = Stopper(grace)
    with stopper.installed():
        try:
            prepared = join_search(
                study,
                storage,
                artifacts,
                root=root,
                device=device,
                study_file=None if own is None else own.text,
            )
            with stopper.protected():
                finished = run_worker(
                    prepared, n_trials=n_trials, timeout=timeout, stopper=stopper
                )
        except Stopped:
            _logger.warning("stopped")
        else:
            _logger.info("done after %d trials of this worker", finished)
    return stopper.exit_code


def run_processes(
    study: str,
    count: int,
    *,
    storage: str | None,
    root: Path | None,
    artifacts: str | None,
    device: str,
    own: StudyReference | None = None,
    n_trials: int | None = None,
    timeout: float | None = None,
    grace: float = 5.0,
    log_level: str = "info",
    scheduler: str | None = None,
    show: Callable[[str], None] | None = None,
    on_tick: Callable[[], None] | None = None,
) -> int:
    """Run several worker processes until all have ended; return the exit code.

    Args:
        study:
            Name of the study.
        count:
            Number of processes.
        storage:
            URL or file of the study database.
        root:
            Folder of data sets.
        artifacts:
            Folder or bucket of the trained models.
        device:
            Device of all tensors.
        own:
            File of own models, if the study is of such.
        n_trials:
            Trials of each process at most.
        timeout:
            Seconds after which a process begins no further trial; those of the plan by default.
        grace:
            Seconds that a running trial gets to finish after a signal.
        log_level:
            Least important lines that the processes write.
        scheduler:
            Address of a Dask scheduler whose cluster runs them instead of this machine.
        show:
            Function that takes the lines that the processes write.
        on_tick:
            Function that is called several times a second.
    """
    arguments = ["--device", device, "--grace", str(grace), "--log-level", log_level]
    if n_trials is not None:
        arguments += ["--n-trials", str(n_trials)]
    if timeout is not None:
        arguments += ["--timeout", str(timeout)]
    arguments += ["--", study]
    environment = {
        name: str(value)
        for name, value in {
            "SGQUANT_STORAGE": storage,
            "SGQUANT_DATA": root,
            "SGQUANT_ARTIFACTS": artifacts,
            # Empty for named models: one that is set here would be refused.
            "SGQUANT_STUDY": "" if own is None else own.absolute().text,
        }.items()
        if value is not None
    }
    if scheduler is not None:
        from sgquant_optuna.search.workers.dask_cluster import run_on_dask

        with ended_after(grace + PARENT_MARGIN):
            return run_on_dask(scheduler, arguments, count, environment=environment, show=show)
    workers = WorkerProcesses(arguments, count, environment=environment, grace=grace, show=show)
    with workers.forwarding_signals(), ended_after(grace + PARENT_MARGIN):
        with contextlib.suppress(KeyboardInterrupt):
            while workers.watch():
                time.sleep(_POLL)
                if on_tick is not None:
                    on_tick()
    return workers.exit_code
