"""``sgquant init``: all of a search but its trials."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sgquant_optuna.cli.options import Artifacts, Device, Root, Storage, StudyName
from sgquant_optuna.cli.plan_options import takes_plan

if TYPE_CHECKING:
    from sgquant_optuna.search_plan import SearchPlan


@takes_plan
def init(
    plan: SearchPlan,
    root: Root = None,
    device: Device = "cpu",
    storage: Storage = None,
    artifacts: Artifacts = None,
    study: StudyName = None,
) -> None:
    """Make a study, train its full-precision models once and share them, for workers to join.

    Safe to start several times at once: one trains, the others wait for it.
    """
    from rich.console import Console

    from sgquant_optuna.cli.quiet import quiet_optuna
    from sgquant_optuna.preparation import prepare_search

    quiet_optuna()
    with Console(stderr=True).status(f"training {plan.model} on {plan.dataset}"):
        prepared = prepare_search(
            plan,
            storage=storage,
            study_name=study,
            artifacts=artifacts,
            root=root,
            device=device,
        )
    typer.echo(f"Study {prepared.study.study_name} is ready for {plan.n_trials} trials. Join it:")
    typer.echo(worker_line(prepared.study.study_name, storage=storage, root=root))


def worker_line(study: str, *, storage: str | None, root: Path | None) -> str:
    """Return the command that joins a study, from any folder.

    A password of the URL is shown as ``***``: it would stay in the history of a shell.
    """
    from sgquant_optuna.storage import DEFAULT_FILE

    words = ["sgquant", "worker", study, "--storage", _anywhere(storage or str(DEFAULT_FILE))]
    if root is not None:
        words += ["--root", str(root.absolute())]
    return shlex.join(words)


def _anywhere(storage: str) -> str:
    """Return a storage URL without password, or the full path of a file."""
    import sqlalchemy as sa

    if "://" not in storage:
        return str(Path(storage).absolute())
    url = sa.make_url(storage)
    if url.get_backend_name() == "sqlite" and url.database:
        url = url.set(database=str(Path(url.database).absolute()))
    return url.render_as_string(hide_password=True)
