"""The options that describe a search, shared by the commands that make one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from sgquant_optuna.cli.options import assignments, integers
from sgquant_optuna.graph.degree_edges import DEFAULT_NUM_BUCKETS, check_degree_edges
from sgquant_optuna.graph.training_config import (
    FINETUNING,
    PAPER_TRAINING,
    PaperModel,
    TrainingConfig,
)
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.study.plan import Mode, SearchPlan
from sgquant_optuna.study.search_space import DEFAULT_CANDIDATES


def plan_of_options(
    model: Annotated[PaperModel, typer.Option(help="Model of the paper.")] = SearchPlan.model,
    dataset: Annotated[
        str, typer.Option(help="digits (embedded), Cora, CiteSeer, PubMed, Computers, ...")
    ] = SearchPlan.dataset,
    n_trials: Annotated[
        int, typer.Option(min=1, help="Trials of the study, earlier ones included.")
    ] = SearchPlan.n_trials,
    patience: Annotated[
        int,
        typer.Option(
            min=0,
            help="End early after so many suggestions that promise to save less than 1 % more; "
            "0 for never.",
        ),
    ] = SearchPlan.patience,
    timeout: Annotated[
        float | None,
        typer.Option(
            show_default="no limit", help="Seconds of search after which no further trial begins."
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(help="Largest drop of validation accuracy, in percentage points.")
    ] = SearchPlan.max_drop,
    granularity: Annotated[
        str, typer.Option(help="uniform, or lwq, cwq and taq joined by +.")
    ] = SearchPlan.granularity,
    mode: Annotated[
        Mode,
        typer.Option(help="Least memory within --max-drop, or the Pareto front of both."),
    ] = SearchPlan.mode,
    widths: Annotated[str, typer.Option(help="Candidate bit widths, of 1-8, 16 and 32.")] = (
        ",".join(map(str, DEFAULT_CANDIDATES))
    ),
    degree_buckets: Annotated[
        int, typer.Option(min=1, help="Degree buckets of about equal size.")
    ] = DEFAULT_NUM_BUCKETS,
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
    ] = SearchPlan.exact_inputs,
    encoding: Annotated[
        str, typer.Option(help="Parameters as categorical widths or ordinal indices.")
    ] = SearchPlan.encoding,
    rounding: Annotated[
        str, typer.Option(help="nearest, or floor as in the paper.")
    ] = QuantizerConfig.rounding,
    range_estimator: Annotated[
        str, typer.Option(help="least_squares, percentile, or minmax as in the paper.")
    ] = QuantizerConfig.range_estimator,
    range_axis: Annotated[
        str, typer.Option(help="What shares a range: tensor, bucket, column or row.")
    ] = QuantizerConfig.axis,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=0,
            show_default=str(TrainingConfig.epochs),
            help="Epochs of full-precision training.",
        ),
    ] = None,
    finetune_epochs: Annotated[
        int, typer.Option(min=0, help="Epochs of finetuning in each trial.")
    ] = FINETUNING.epochs,
    models: Annotated[
        int,
        typer.Option(min=1, help="Trainings that each trial is measured on, against luck."),
    ] = SearchPlan.models,
    final_seeds: Annotated[
        int, typer.Option(min=2, help="Fresh trainings of the final report.")
    ] = SearchPlan.final_seeds,
    acquisition: Annotated[
        str, typer.Option(help="How trials are chosen: default, or paper for its five steps.")
    ] = SearchPlan.acquisition,
    cost_model: Annotated[
        str,
        typer.Option(help="What the default learns with: blend, gaussian_process or boosted."),
    ] = SearchPlan.cost_model,
    seed: Annotated[
        int, typer.Option(help="Seed of split, weights, finetuning and sampler.")
    ] = SearchPlan.seed,
) -> SearchPlan:
    """Make the plan of a command line.

    Raises:
        ValueError:
            If an option is out of range.
    """
    training = PAPER_TRAINING[model]
    return SearchPlan(
        model=model,
        dataset=dataset,
        n_trials=n_trials,
        patience=patience,
        timeout=timeout,
        max_drop=max_drop,
        mode=mode,
        granularity=granularity,
        candidates=integers(widths, what="--widths"),
        degree_edges=degree_buckets
        if degree_edges is None
        else check_degree_edges(integers(degree_edges, what="--degree-edges")),
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
        acquisition=acquisition,
        cost_model=cost_model,  # type: ignore[arg-type]
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
    hints = get_type_hints(function, include_extras=True)
    return [
        parameter.replace(annotation=hints[parameter.name])
        for parameter in inspect.signature(function).parameters.values()
    ]
