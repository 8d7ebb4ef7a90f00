"""The options that describe a search, shared by the commands that make one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, get_type_hints

import typer

from sgquant_optuna.cli.options import assignments, integers
from sgquant_optuna.graph.degree_edges import DEFAULT_NUM_BUCKETS, check_degree_edges
from sgquant_optuna.graph.split_choice import parse_split
from sgquant_optuna.graph.training_config import (
    FINETUNING,
    OWN_TRAINING,
    DecayedLayers,
    PaperModel,
    paper_training,
)
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.study.byte_sizes import parse_bytes
from sgquant_optuna.study.limit import plain_drop
from sgquant_optuna.study.plan import Mode, SearchPlan
from sgquant_optuna.study.search_space import DEFAULT_CANDIDATES
from sgquant_optuna.study.study_reference import StudyReference

_OF_THE_PAIR = "by model and data set"


def plan_of_options(
    model: Annotated[
        PaperModel | None,
        typer.Option(show_default=str(SearchPlan.model), help="Model of the paper."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            show_default=str(SearchPlan.dataset),
            help="digits (embedded), Cora, CiteSeer, PubMed, Computers, ...",
        ),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py",
            show_default=False,
            help="Instead, your own models and graph: FILE.py, whose function study() returns "
            "them, FILE.py:function or package.module:function.",
        ),
    ] = None,
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
        str | None,
        typer.Option(
            show_default=str(SearchPlan.max_drop),
            help="Largest drop, in the unit of the metric (points of accuracy), or as 2% of full "
            "precision.",
        ),
    ] = None,
    confidence: Annotated[
        float, typer.Option(help="Probability with which the drop is at most --max-drop.")
    ] = SearchPlan.confidence,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Instead, the largest memory, as 8MB, 800kB, 1.5MiB or bytes: least drop in it."
        ),
    ] = None,
    granularity: Annotated[
        str, typer.Option(help="uniform, or lwq, cwq and taq joined by +.")
    ] = SearchPlan.granularity,
    mode: Annotated[
        Mode | None,
        typer.Option(
            show_default=f"{SearchPlan.mode}, or budget with --budget",
            help="Least memory within --max-drop, the Pareto front of both, or --budget.",
        ),
    ] = None,
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
    normalize_features: Annotated[
        bool | None,
        typer.Option(
            "--normalize-features/--raw-features",
            show_default=_OF_THE_PAIR,
            help="Divide each row of the graph's features by its sum.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="Split of a graph with several: its number from 0, or all, a model for each.",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=0, show_default=_OF_THE_PAIR, help="Epochs of full-precision training, at most."
        ),
    ] = None,
    training_patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=_OF_THE_PAIR,
            help="Epochs without a lower validation loss that end it.",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(show_default=_OF_THE_PAIR, help="Learning rate of it.")
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(show_default=_OF_THE_PAIR, help="L2 penalty of it and of finetuning."),
    ] = None,
    decayed_layers: Annotated[
        DecayedLayers | None,
        typer.Option(show_default=_OF_THE_PAIR, help="Layers with this penalty."),
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
    first_look: Annotated[
        int,
        typer.Option(min=0, help="Epochs after which a hopeless trial may end; 0 for none."),
    ] = SearchPlan.first_look,
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
    if budget is not None and max_drop is not None:
        raise ValueError("expected --budget or --max-drop, got both")
    of_names = {
        "--model": model,
        "--dataset": dataset,
        "--normalize-features": normalize_features,
    }
    named = [name for name, value in of_names.items() if value is not None]
    if study is not None and named:
        raise ValueError(
            f"--study: expected without {', '.join(named)}, got both; your file has its own model "
            f"and graph (--name gives a study its name)"
        )
    model, dataset = model or SearchPlan.model, dataset or SearchPlan.dataset
    assert model is not None and dataset is not None
    budget_bytes = None if budget is None else parse_bytes(budget, what="--budget")
    usual = paper_training(model, dataset) if study is None else OWN_TRAINING
    chosen: dict[str, Any] = {
        "epochs": epochs,
        "patience": training_patience,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "decayed_layers": decayed_layers,
    }
    training = replace(
        usual.training, **{name: value for name, value in chosen.items() if value is not None}
    )
    return SearchPlan(
        model=model if study is None else None,
        dataset=dataset if study is None else None,
        own=None if study is None else StudyReference(study),
        normalize_features=usual.normalize_features
        if normalize_features is None
        else normalize_features,
        split=None if split is None else parse_split(split, what="--split"),
        n_trials=n_trials,
        patience=patience,
        timeout=timeout,
        max_drop=SearchPlan.max_drop if max_drop is None else plain_drop(max_drop),
        confidence=confidence,
        mode=mode or (SearchPlan.mode if budget is None else "budget"),
        budget_bytes=budget_bytes,
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
        training=training,
        finetuning=replace(
            FINETUNING,
            epochs=finetune_epochs,
            weight_decay=training.weight_decay,
            decayed_layers=training.decayed_layers,
        ),
        models=models,
        final_seeds=final_seeds,
        first_look=first_look,
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
