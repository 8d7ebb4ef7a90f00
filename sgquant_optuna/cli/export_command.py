"""``sgquant export``: the packed model of a trial as one file, or its bit widths as JSON."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from sgquant_optuna.cli.options import Artifacts, Quiet, Root, Storage, StudyArgument, StudyFile

_LONGEST_STEM = 200  # bytes; a name of a file has 255 at most


def export(
    study: StudyArgument = None,
    out: Annotated[
        Path | None,
        typer.Option(show_default="STUDY.safetensors", help="File to write; .json for widths."),
    ] = None,
    trial: Annotated[
        int | None,
        typer.Option(show_default="the final report's, else the best", help="Which trial."),
    ] = None,
    assignment_only: Annotated[
        bool, typer.Option("--assignment-only", help="Write the bit widths alone, as JSON.")
    ] = False,
    without_features: Annotated[
        bool,
        typer.Option(
            "--without-features", help="Write the model alone, to be called with any graph."
        ),
    ] = False,
    attach: Annotated[
        bool, typer.Option("--attach", help="Offer the file on the dashboard's page, too.")
    ] = False,
    root: Root = None,
    storage: Storage = None,
    artifacts: Artifacts = None,
    study_file: StudyFile = None,
    quiet: Quiet = False,
) -> None:
    """Write a trial as one file: weights, bit widths, ranges and the packed features."""
    if without_features and (assignment_only or (out is not None and out.suffix == ".json")):
        raise ValueError("--without-features: expected a packed model, got --assignment-only")
    from sgquant_optuna.cli.console import console
    from sgquant_optuna.cli.logs import quiet_optuna
    from sgquant_optuna.search.trial_export import export_assignment, export_study
    from sgquant_optuna.storage.artifacts import open_artifacts
    from sgquant_optuna.study.byte_sizes import megabytes
    from sgquant_optuna.study.dashboard.study_files import attach_best_model
    from sgquant_optuna.study.loading import load_study
    from sgquant_optuna.study.record import StudyRecord

    quiet_optuna()
    opened = load_study(study, storage=storage)
    assignment_only = assignment_only or (out is not None and out.suffix == ".json")
    ending = ".json" if assignment_only else ".safetensors"
    path = out or Path(file_stem(opened.study_name) + ending)
    # Names of studies and files may look like markup, so nothing here is printed by rich.
    if assignment_only:
        written = export_assignment(opened, path, trial=trial)
        typer.echo(f"trial {written.source['trial']} of {opened.study_name}: {path}")
        return
    store = open_artifacts(artifacts, storage_url=storage)
    with console(stderr=True, quiet=quiet).status("finetuning as the trial did"):
        done = export_study(
            opened,
            path,
            trial=trial,
            root=root,
            artifact_store=store,
            study_file=study_file,
            with_features=not without_features,
        )
    if attach:
        attach_best_model(opened, store, path)
    metric = StudyRecord.of(opened).metric
    stored = f"features stored: {megabytes(done.model.stored_nbytes)}"
    if without_features:
        stored = f"features on this graph, not in the file: {megabytes(done.model.stored_nbytes)}"
    typer.echo(
        f"trial {done.trial} of {opened.study_name}: {path}, "
        f"{megabytes(done.model.file_nbytes)}\n"
        f"validation {metric.name}: trial {metric.value(done.trial_accuracy)}, measured again "
        f"{metric.value(done.reproduced_accuracy)}, of the packed training "
        f"{metric.value(done.accuracy)}\n"
        f"{stored}, equal to the accounting; "
        f"scores differ by {done.model.score_difference:.1g} of the largest at most"
    )


def file_stem(study_name: str) -> str:
    """Return the name of a study as that of a file in this folder, whatever is in it."""
    plain = re.sub(r"[^\w.+=-]+", "_", study_name).lstrip(".-")
    return plain.encode()[:_LONGEST_STEM].decode(errors="ignore") or "study"
