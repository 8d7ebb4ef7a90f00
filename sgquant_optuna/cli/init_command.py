"""``sgquant init``: all of a search but its trials."""

from __future__ import annotations

import shlex
from pathlib import Path

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
from sgquant_optuna.study.study_reference import StudyReference


@takes_plan
def init(
    plan: SearchPlan,
    root: Root = None,
    device: Device = "cpu",
    storage: Storage = None,
    artifacts: Artifacts = None,
    name: StudyName = None,
    wait: Wait = None,
    quiet: Quiet = False,
) -> None:
    """Make a study, train its full-precision models once and share them, for workers to join.

    Safe to start several times at once: one trains, the others wait for it.
    """
    from sgquant_optuna.cli.console import console, plain
    from sgquant_optuna.cli.logs import quiet_optuna, short_warnings
    from sgquant_optuna.search.preparation import prepare_search

    quiet_optuna()
    training = plain(f"training {plan.subject}")  # which may look like markup
    with console(stderr=True, quiet=quiet).status(training), short_warnings():
        opened, store = open_both(storage, artifacts, wait=seconds_to_wait(wait))
        prepared = prepare_search(plan, opened, store, study_name=name, root=root, device=device)
    typer.echo(f"Study {prepared.study.study_name} is ready for {plan.n_trials} trials. Join it:")
    typer.echo(worker_line(prepared.study.study_name, storage=storage, root=root, own=plan.own))


def worker_line(
    study: str, *, storage: str | None, root: Path | None, own: StudyReference | None = None
) -> str:
    """Return the command that joins a study, from any folder.

    A password of the URL is shown as ``***``: it would stay in the history of a shell.
    """
    from sgquant_optuna.storage.urls import shown_storage

    words = ["sgquant", "worker", study, "--storage", shown_storage(storage)]
    if root is not None:
        words += ["--root", str(root.absolute())]
    if own is not None:
        words += ["--study", own.absolute().text]
    return shlex.join(words)
