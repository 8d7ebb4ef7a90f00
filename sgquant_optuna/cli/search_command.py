"""``sgquant search``: train, search, report; the same command again resumes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgquant_optuna.cli.options import (
    Artifacts,
    Device,
    Quiet,
    Root,
    Storage,
    StudyName,
    Wait,
    open_both,
    seconds_to_wait,
)
from sgquant_optuna.cli.plan_options import takes_plan
from sgquant_optuna.study.plan import SearchPlan

if TYPE_CHECKING:
    from rich.console import Console

    from sgquant_optuna.search.preparation import PreparedSearch
    from sgquant_optuna.search.trial_export import ExportedTrial
    from sgquant_optuna.search.workers.stopping import Stopper
    from sgquant_optuna.storage.artifacts import ArtifactStore

_RESUME = "stopped; the same command resumes"


@takes_plan
def search(
    plan: SearchPlan,
    n_jobs: Annotated[
        int, typer.Option(min=1, help="Worker processes; the cores are divided among them.")
    ] = 1,
    root: Root = None,
    device: Device = "cpu",
    storage: Storage = None,
    artifacts: Artifacts = None,
    name: StudyName = None,
    attach: Annotated[
        bool,
        typer.Option("--attach", help="Offer the packed best model on the dashboard's page."),
    ] = False,
    wait: Wait = None,
    quiet: Quiet = False,
) -> None:
    """Train a model, search its bit widths, and show what was saved at what accuracy.

    The same command again resumes a search that was stopped.
    """
    # Imported here, so that --help and mistakes on the line answer at once.
    from sgquant_optuna.cli.console import console, plain
    from sgquant_optuna.cli.logs import quiet_optuna, short_warnings
    from sgquant_optuna.search.preparation import prepare_search
    from sgquant_optuna.search.workers.stopping import PARENT_MARGIN, Stopped, Stopper
    from sgquant_optuna.study.byte_sizes import megabytes
    from sgquant_optuna.study.deletion import telling_deletion
    from sgquant_optuna.study.record import StudyRecord
    from sgquant_optuna.study.report import report

    quiet_optuna()
    # The standard output holds the report alone. Dataset and study may look like markup.
    terminal = console(stderr=True, quiet=quiet)
    training = plain(f"training {plan.subject} at full precision")
    stopper = Stopper(grace=0.0, margin=PARENT_MARGIN)
    try:
        with stopper.installed():
            with terminal.status(training), short_warnings():
                opened, store = open_both(storage, artifacts, wait=seconds_to_wait(wait))
                prepared = prepare_search(
                    plan, opened, store, study_name=name, root=root, device=device
                )
            workers = _Workers(n_jobs, storage, artifacts, root, device)
            _run_trials(prepared, stopper, terminal, workers)
            with telling_deletion(prepared.study):
                if "test_mask" in prepared.objective.task.part(prepared.data):
                    with terminal.status("measuring the best trials again on fresh trainings"):
                        _measure_again(prepared)
                console().print(report(prepared.study))
                if attach:
                    with terminal.status("packing the model of the report"):
                        done = _attach(prepared, store, root, device)
                    metric = StudyRecord.of(prepared.study).metric
                    typer.echo(
                        f"attached: trial {done.trial}, {megabytes(done.model.file_nbytes)}, "
                        f"validation {metric.name} {metric.value(done.accuracy)}"
                    )
    except Stopped:
        typer.echo(_RESUME, err=True)
        raise typer.Exit(stopper.exit_code) from None


@dataclass(frozen=True)
class _Workers:
    """What other processes need to join the search."""

    count: int
    storage: str | None
    artifacts: str | None
    root: Path | None
    device: str


def _run_trials(
    prepared: PreparedSearch, stopper: Stopper, console: Console, workers: _Workers
) -> None:
    """Measure the trials that the plan still asks for, here or in several processes."""
    from sgquant_optuna.search.progress import SearchProgress
    from sgquant_optuna.search.workers.engines import run_processes
    from sgquant_optuna.search.workers.stopping import Stopped
    from sgquant_optuna.search.workers.worker import run_worker
    from sgquant_optuna.study.deletion import telling_deletion
    from sgquant_optuna.study.rows import trial_rows
    from sgquant_optuna.study.trial_result import TrialScore

    plan, study = prepared.plan, prepared.study
    with telling_deletion(study):
        finished = sum(row.result is not None for row in trial_rows(study, TrialScore))
    if finished < plan.n_trials:
        with SearchProgress(study, total=plan.n_trials, console=console) as progress:
            if workers.count == 1:
                with stopper.protected():
                    run_worker(prepared, stopper=stopper, callbacks=[progress])
            else:
                code = run_processes(
                    study.study_name,
                    workers.count,
                    storage=workers.storage,
                    root=workers.root,
                    artifacts=workers.artifacts,
                    device=workers.device,
                    own=plan.own,
                    grace=stopper.grace,
                    log_level="error" if console.quiet else "warning",
                    # A quiet console would swallow the errors, too.
                    show=None if console.quiet else progress.print,
                    on_tick=progress.update,
                )
                if code:
                    if code > 128:
                        typer.echo(_RESUME, err=True)
                    raise typer.Exit(code)
    if stopper.requested:
        raise Stopped


def _measure_again(prepared: PreparedSearch) -> None:
    """Choose a trial on fresh trainings and open the test nodes."""
    from sgquant_optuna.search.final_report import final_report
    from sgquant_optuna.search.trained_models import train_model
    from sgquant_optuna.storage.lease import exclusive

    # Two searches of one study that end together open the test nodes once.
    plan, data, own = prepared.plan, prepared.data, prepared.own
    can_train = own is None or not own.own.trained
    with exclusive(prepared.study, "final report", unless=lambda: False):
        final_report(
            prepared.study,
            prepared.objective,
            data,
            seeds=plan.final_seeds,
            retrain=(lambda seed, *split: train_model(plan, data, seed, own, *split))
            if can_train
            else None,
        )


def _attach(
    prepared: PreparedSearch, store: ArtifactStore, root: Path | None, device: str
) -> ExportedTrial:
    from sgquant_optuna.search.trial_export import export_study
    from sgquant_optuna.study.dashboard.study_files import MODEL_FILE, attach_best_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_FILE
        done = export_study(
            prepared.study,
            path,
            root=root,
            artifact_store=store,
            # Only the trial is finetuned again; models of another device are loaded anew.
            objective=prepared.objective if device == "cpu" else None,
            study_file=None if prepared.plan.own is None else prepared.plan.own.text,
        )
        attach_best_model(prepared.study, store, path)
    return done
