"""``sgquant search``: train, search, report; the same command again resumes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sgquant_optuna.cli.options import Storage, assignments, integers


class ModelName(StrEnum):
    """The models of the paper."""

    GCN = "gcn"
    AGNN = "agnn"
    GAT = "gat"


class ModeName(StrEnum):
    """What a search minimises."""

    CONSTRAINED = "constrained"
    PARETO = "pareto"


def search(
    model: Annotated[ModelName, typer.Option(help="Model of the paper.")] = ModelName.GCN,
    dataset: Annotated[
        str, typer.Option(help="digits (embedded), Cora, CiteSeer, PubMed, Computers, ...")
    ] = "digits",
    root: Annotated[
        Path | None,
        typer.Option(envvar="SGQUANT_DATA", show_default="data", help="Folder of data sets."),
    ] = None,
    n_trials: Annotated[
        int, typer.Option(min=1, help="Trials of the study, earlier ones included.")
    ] = 48,
    max_drop: Annotated[
        float, typer.Option(help="Largest drop of validation accuracy, in percentage points.")
    ] = 0.5,
    granularity: Annotated[
        str, typer.Option(help="uniform, or lwq, cwq and taq joined by +.")
    ] = "lwq+cwq+taq",
    mode: Annotated[
        ModeName,
        typer.Option(help="Least memory within --max-drop, or the Pareto front of both."),
    ] = ModeName.CONSTRAINED,
    widths: Annotated[
        str, typer.Option(help="Candidate bit widths, of 1-8, 16 and 32.")
    ] = "1,2,4,8",
    degree_buckets: Annotated[
        int, typer.Option(min=1, help="Degree buckets of about equal size.")
    ] = 4,
    degree_edges: Annotated[
        str | None,
        typer.Option(help="Instead, the lowest degree of each bucket but the first: 4,8,16."),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="Keep a site out of the search, as NAME=BITS; may be repeated."),
    ] = None,
    exact_inputs: Annotated[
        bool,
        typer.Option(
            "--exact-inputs/--search-inputs",
            help="Do not search inputs that a lossless store holds in as few bytes.",
        ),
    ] = True,
    encoding: Annotated[
        str, typer.Option(help="Parameters as categorical widths or ordinal indices.")
    ] = "categorical",
    rounding: Annotated[str, typer.Option(help="nearest, or floor as in the paper.")] = "nearest",
    range_estimator: Annotated[
        str, typer.Option(help="least_squares, percentile, or minmax as in the paper.")
    ] = "least_squares",
    range_axis: Annotated[
        str, typer.Option(help="What shares a range: tensor, bucket, column or row.")
    ] = "tensor",
    epochs: Annotated[
        int | None,
        typer.Option(min=0, show_default="200", help="Epochs of full-precision training."),
    ] = None,
    finetune_epochs: Annotated[
        int, typer.Option(min=0, help="Epochs of finetuning in each trial.")
    ] = 30,
    models: Annotated[
        int,
        typer.Option(min=1, help="Trainings that each trial is measured on, against luck."),
    ] = 3,
    final_seeds: Annotated[
        int, typer.Option(min=2, help="Fresh trainings of the final report.")
    ] = 5,
    seed: Annotated[int, typer.Option(help="Of split, weights, finetuning and sampler.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    storage: Storage = None,
    study: Annotated[
        str | None,
        typer.Option(show_default="MODEL-DATASET-GRANULARITY", help="Name of the study."),
    ] = None,
) -> None:
    """Train a model, search its bit widths, and show what was saved at what accuracy.

    The same command again resumes a search that was stopped.
    """
    # Imported here, so that --help and mistakes on the line answer at once.
    from optuna.study import MaxTrialsCallback
    from optuna.trial import TrialState
    from rich.console import Console

    from sgquant_optuna.cli.progress import SearchProgress
    from sgquant_optuna.cli.quiet import quiet_optuna
    from sgquant_optuna.degree_buckets import check_degree_edges
    from sgquant_optuna.final_measurement import final_report
    from sgquant_optuna.models import MODELS
    from sgquant_optuna.quantization.config import QuantizerConfig
    from sgquant_optuna.search_plan import SearchPlan
    from sgquant_optuna.selection import measured_trials
    from sgquant_optuna.study import create_study
    from sgquant_optuna.study_report import report
    from sgquant_optuna.training import FINETUNING

    quiet_optuna()
    console = Console()
    edges: tuple[int, ...] | int = degree_buckets
    if degree_edges is not None:
        edges = check_degree_edges(integers(degree_edges, what="--degree-edges"))
    training = MODELS[model.value].training
    plan = SearchPlan(
        model=model.value,
        dataset=dataset,
        n_trials=n_trials,
        max_drop=max_drop,
        mode=mode.value,
        granularity=granularity,
        bit_widths=integers(widths, what="--widths"),
        degree_edges=edges,
        frozen=assignments(freeze or [], what="--freeze"),
        exact_inputs=exact_inputs,
        encoding=encoding,  # type: ignore[arg-type]
        quantizer=QuantizerConfig(
            rounding=rounding,  # type: ignore[arg-type]
            range_estimator=range_estimator,  # type: ignore[arg-type]
            axis=range_axis,  # type: ignore[arg-type]
        ),
        training=training if epochs is None else training.with_epochs(epochs),
        finetuning=FINETUNING.with_epochs(finetune_epochs),
        models=models,
        final_seeds=final_seeds,
        seed=seed,
    )
    data = plan.load_graph(root, device=device)
    with console.status(f"training {plan.model} on {plan.dataset} at full precision"):
        networks = plan.train_all(data)
    with console.status("calibrating"):
        objective = plan.objective(networks, data)
        optuna_study = create_study(
            objective, storage=storage, study_name=study or plan.study_name, seed=seed
        )
        plan.save(optuna_study)
    if len(measured_trials(optuna_study)) < n_trials:
        with SearchProgress(optuna_study, max_drop, total=n_trials, console=console) as progress:
            optuna_study.optimize(
                objective,
                callbacks=[
                    progress,
                    MaxTrialsCallback(n_trials, states=(TrialState.COMPLETE,)),
                ],
            )
    if "test_mask" in data:
        with console.status("measuring the best trials again on fresh trainings"):
            final_report(
                optuna_study,
                objective,
                data,
                seeds=final_seeds,
                retrain=lambda fresh: plan.train(data, fresh),
            )
    console.print(report(optuna_study))
