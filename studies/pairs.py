"""The paper's models on its data sets: graph, full-precision models and study of each pair."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from torch import nn

import sgquant_optuna as sgq

PAIRS = [f"{m}/{d}" for m in sgq.MODELS for d in ("Cora", "CiteSeer", "PubMed", "Computers")]


@dataclass
class Pair:
    """A model of the paper on a data set, both by their names."""

    model: str
    dataset: str
    root: str | None

    def __post_init__(self) -> None:
        """Load the graph."""
        self.paper = sgq.paper_training(self.model, self.dataset)
        normalize = self.paper.normalize_features
        self.data = sgq.load_graph(self.dataset, self.root, normalize_features=normalize)

    def trained(self, seed: int) -> nn.Module:
        """Train the full-precision model from a seed."""
        classes = int(self.data.y.max()) + 1
        model = sgq.make_model(self.model, self.data.num_features, classes, seed=seed)
        sgq.fit(model, self.data, self.paper.training, seed=seed)
        return model

    def objective(self, models: int, **options: Any) -> sgq.QuantizationObjective:
        """Return the objective of some trained models."""
        trained = [self.trained(seed) for seed in range(models)]
        return sgq.QuantizationObjective(trained, self.data, **options)


def measure(study: optuna.Study, objective: sgq.QuantizationObjective, n_trials: int) -> None:
    """Go on with a study until it has so many trials that ended, or measured its whole space."""
    size = len(objective.search_space.candidates) ** len(objective.search_space.names)
    ended = sum(trial.state.is_finished() for trial in study.trials)
    study.optimize(objective, n_trials=max(min(n_trials, size) - ended, 0))


def is_done(name: str, storage: str | None, mark: str) -> bool:
    """Tell whether a study is there and has its mark, so that nothing is trained again."""
    backend = sgq.open_storage(storage)
    known = name in optuna.get_all_study_names(backend)
    return known and mark in optuna.load_study(study_name=name, storage=backend).user_attrs


def arguments(
    doc: str | None,
    *,
    only: Sequence[str] = PAIRS,
    n_trials: tuple[int, int] = (0, 0),
    seeds: tuple[int, int] = (0, 0),
) -> argparse.Namespace:
    """Read the options that the studies of the paper share; numbers are (with --quick, usual)."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--root", help="folder of data sets; $SGQUANT_DATA or data by default")
    parser.add_argument("--only", nargs="+", default=only, metavar="MODEL/DATASET", help="pairs")
    parser.add_argument("--quick", action="store_true", help="few trials on an embedded graph")
    parser.add_argument("--n-trials", type=int, help=f"of each study; {n_trials[1]} by default")
    parser.add_argument("--seeds", type=int, help=f"repetitions; {seeds[1]} by default")
    parser.add_argument("--storage", help="database URL; storage/sgquant.db by default")
    parser.add_argument("--out", type=Path, default=Path("storage"), help="folder of the models")
    options = parser.parse_args()
    options.n_trials = options.n_trials or n_trials[not options.quick]
    options.seeds = options.seeds or seeds[not options.quick]
    options.models = 1 if options.quick else 3
    if options.quick:
        options.only = dict.fromkeys(f"{name.partition('/')[0]}/digits" for name in options.only)
    return options


def pairs(options: argparse.Namespace) -> Iterator[Pair]:
    """Load the pairs that the command line names, one after another."""
    for named in options.only:
        model, _, dataset = named.partition("/")
        yield Pair(model, dataset, options.root)
