"""The options that describe a search, shared by the commands that make one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from sgquant_optuna.cli.options import assignments, integers

if TYPE_CHECKING:
    from sgquant_optuna.study.plan import SearchPlan


class ModelName(StrEnum):
    """The models of the paper."""

    GCN = "gcn"
    AGNN = "agnn"
    GAT = "gat"


class ModeName(StrEnum):
    """What a search minimises."""

    CONSTRAINED = "constrained"
    PARETO = "pareto"


def plan_of_options(
    model: Annotated[ModelName, typer.Option(help="Model of the paper.")] = ModelName.GCN,
    dataset: Annotated[
        str, typer.Option(help="digits (embedded), Cora, CiteSeer, PubMed, Computers, ...")
    ] = "digits",
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
) -> SearchPlan:
    """Make the plan of a command line.

    Raises:
        ValueError:
            If an option is out of range.
    """
    # Imported here, so that --help and mistakes on the line answer at once.
    from sgquant_optuna.graph.degree_edges import check_degree_edges
    from sgquant_optuna.graph.training_config import FINETUNING, PAPER_TRAINING
    from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
    from sgquant_optuna.study.plan import SearchPlan

    edges: tuple[int, ...] | int = degree_buckets
    if degree_edges is not None:
        edges = check_degree_edges(integers(degree_edges, what="--degree-edges"))
    training = PAPER_TRAINING[model.value]
    return SearchPlan(
        model=model.value,
        dataset=dataset,
        n_trials=n_trials,
        max_drop=max_drop,
        mode=mode.value,
        granularity=granularity,
        candidates=integers(widths, what="--widths"),
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


def takes_plan(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of :func:`plan_of_options` in the place of its first parameter.

    Typer reads a command's options from its signature, so the wrapper shows both together.

    Args:
        command:
            A function whose first parameter is the plan.
    """
    options = _resolved(plan_of_options)
    own = _resolved(command)[1:]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        described = {option.name: values.pop(option.name) for option in options}
        command(plan_of_options(**described), **values)

    wrapper.__signature__ = inspect.Signature([*options, *own])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {option.name: option.annotation for option in (*options, *own)}
    return wrapper


def _resolved(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of a function with their annotations evaluated."""
    # The plan's class is named for the type checker only: importing it would import torch.
    hints = get_type_hints(function, localns={"SearchPlan": object}, include_extras=True)
    return [
        parameter.replace(annotation=hints[parameter.name])
        for parameter in inspect.signature(function).parameters.values()
    ]
