"""``sgquant worker``: join a study from any machine."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from sgquant_optuna.cli.logs import LogLevel, start_logging
from sgquant_optuna.cli.options import (
    Artifacts,
    Device,
    Root,
    Storage,
    StudyArgument,
    StudyFile,
    Wait,
    seconds_to_wait,
)


class Engine(StrEnum):
    """What runs the worker processes."""

    LOCAL = "local"
    DASK = "dask"


def worker(
    study: StudyArgument = None,
    storage: Storage = None,
    root: Root = None,
    artifacts: Artifacts = None,
    study_file: StudyFile = None,
    n_jobs: Annotated[
        int, typer.Option(min=1, help="Processes; the cores are divided among them.")
    ] = 1,
    n_trials: Annotated[
        int | None,
        typer.Option(min=1, show_default="no limit", help="Trials of each process at most."),
    ] = None,
    total: Annotated[
        int | None,
        typer.Option(
            min=1, show_default="as planned", help="Raise the trials of the study to this number."
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=0,
            show_default="as planned",
            help="Change the study: end early after so many suggestions that promise to save less "
            "than 1 % more; 0 for never.",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0,
            show_default="as planned",
            help="Seconds after which these processes begin no further trial.",
        ),
    ] = None,
    device: Device = "cpu",
    grace: Annotated[
        float,
        typer.Option(min=0, help="Seconds that a trial gets to finish after SIGTERM or Ctrl+C."),
    ] = 5.0,
    wait: Wait = None,
    engine: Annotated[
        Engine, typer.Option(help="Run the processes here, or on a Dask cluster.")
    ] = Engine.LOCAL,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of the Dask scheduler: tcp://HOST:8786.")
    ] = None,
    log_level: Annotated[
        LogLevel, typer.Option(help="Least important lines to write.")
    ] = LogLevel.INFO,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show errors only.")] = False,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure trials of a study until it has all that its plan asks for, or has settled.

    The study tells what is measured; only its database, the data sets and the file of own models
    (--study), if it is of such, are needed. SIGTERM or
    Ctrl+C lets the trial finish within --grace or gives it back; a second signal does so at once.
    """
    import warnings
    from dataclasses import replace

    from sgquant_optuna.cli.logs import quiet_optuna
    from sgquant_optuna.exceptions import ExportWarning
    from sgquant_optuna.search.study_file import check_given
    from sgquant_optuna.search.workers.engines import run_here, run_processes
    from sgquant_optuna.storage import open_storage
    from sgquant_optuna.storage.artifacts import open_artifacts
    from sgquant_optuna.study.deletion import telling_deletion
    from sgquant_optuna.study.loading import load_study
    from sgquant_optuna.study.plan import SearchPlan
    from sgquant_optuna.study.study_reference import StudyReference

    if (engine is Engine.DASK) != (scheduler is not None):
        raise ValueError("--scheduler: expected together with --engine dask, and only then")
    quiet_optuna()
    # Who made the study was told.
    warnings.filterwarnings("ignore", category=ExportWarning)
    database = open_storage(storage, create=False, wait=seconds_to_wait(wait))
    opened = load_study(study, storage=database)
    start_logging(opened.study_name, LogLevel.ERROR if quiet else log_level)
    plan = SearchPlan.load(opened)
    check_given(plan, opened.study_name, study_file)
    own = None if not study_file else StudyReference(study_file)
    if total is not None:
        if total < plan.n_trials:
            raise ValueError(f"--total: expected at least the plan's {plan.n_trials}, got {total}")
        plan = replace(plan, n_trials=total)
    if patience is not None:
        plan = replace(plan, patience=patience)
    with telling_deletion(opened):
        plan.save(opened)
    if n_jobs == 1 and engine is Engine.LOCAL:
        code = run_here(
            opened,
            database,
            open_artifacts(artifacts, storage_url=storage),
            root=root,
            device=device,
            own=own,
            n_trials=n_trials,
            timeout=timeout,
            grace=grace,
            parent=parent,
        )
    else:
        code = run_processes(
            opened.study_name,
            n_jobs,
            storage=storage,
            root=root,
            artifacts=artifacts,
            device=device,
            own=own,
            n_trials=n_trials,
            timeout=timeout,
            grace=grace,
            log_level=(LogLevel.ERROR if quiet else log_level).value,
            scheduler=scheduler,
        )
    raise typer.Exit(code)
