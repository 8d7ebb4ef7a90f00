"""Test accuracy of the paper's models at full precision, trained as `sgquant search` trains them.

Each seed is a fresh training, on the public split or on the split of seed 0; with `--splits`, on a
random split of that seed, as the literature measures graphs without a public one. A cell shows
mean and standard deviation, in percent. With `--try`, other settings are compared on the
validation nodes, by other seeds, and the test nodes stay closed: so the settings of each pair were
chosen.

    python benchmarks/full_precision.py --root FOLDER [--only gcn/Cora agnn/Cora] [--quick]
    python benchmarks/full_precision.py --root FOLDER --only gcn/Cora --try normalize_features=1 \
        normalize_features=1,epochs=500,weight_decay=1e-3
    python benchmarks/full_precision.py --root FOLDER --only gcn/Computers --splits
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from sgquant_optuna.graph.datasets import load_graph
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.graph.paper_models import MODELS, make_model
from sgquant_optuna.graph.training import accuracy, fit
from sgquant_optuna.graph.training_config import PaperTraining, TrainingConfig, paper_training

# The papers of the models; on Computers Shchur et al., 2018 (mean over splits), and SGQuant.
LITERATURE = {
    "gcn/Cora": "81.5",
    "gcn/CiteSeer": "70.3",
    "gcn/PubMed": "79.0",
    "gcn/Computers": "82.6 ± 2.4",
    "agnn/Cora": "83.1",
    "agnn/CiteSeer": "71.7",
    "agnn/PubMed": "79.9",
    "agnn/Computers": "77.7",
    "gat/Cora": "83.0 ± 0.7",
    "gat/CiteSeer": "72.5 ± 0.7",
    "gat/PubMed": "79.0 ± 0.3",
}
QUICK = "normalize_features=1,epochs=10"
FIRST_SEED_OF_TRIES = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="digits alone, two short trainings")
    parser.add_argument("--root", help="folder of data sets; $SGQUANT_DATA or data by default")
    parser.add_argument("--seeds", type=int, default=8, help="trainings of each row")
    parser.add_argument("--only", nargs="+", default=[*LITERATURE], metavar="MODEL/DATASET")
    parser.add_argument(
        "--splits", action="store_true", help="a random split for each training, of its seed"
    )
    parser.add_argument(
        "--try",
        nargs="+",
        dest="tries",
        metavar="NAME=VALUE,...",
        help="settings, of which those not named are the usual ones; the test stays closed",
    )
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    torch.set_num_threads(1)  # on graphs of this size, several threads are slower
    pairs, seeds, tries = options.only, options.seeds, options.tries
    if options.quick:
        pairs, seeds, tries = [f"{model}/digits" for model in MODELS], 2, [QUICK]

    table = Table(box=box.MARKDOWN)
    for column in ("", "validation", "loss", "test", "literature", "trainings", "settings"):
        table.add_column(column)
    for pair in pairs:
        for text in tries or [""]:
            cells = row(pair, text, options.root, seeds, test=not tries, splits=options.splits)
            table.add_row(*cells)
            print(*cells, sep=" | ", file=sys.stderr, flush=True)
    Console(width=150).print(table)


def row(
    pair: str, text: str, root: str | None, seeds: int, *, test: bool, splits: bool
) -> list[str]:
    """Train a pair from each seed, and return the cells of its row."""
    name, dataset = pair.split("/")
    chosen = changed(paper_training(name, dataset), text)
    first = 0 if test else FIRST_SEED_OF_TRIES
    accuracies, losses, tests, started = [], [], [], time.perf_counter()
    for seed in range(first, first + seeds):
        if splits or seed == first:
            data = load_graph(
                dataset,
                root,
                seed=seed if splits else 0,
                normalize_features=chosen.normalize_features,
            )
            graph, classes = FixedGraph(data), int(data.y.max()) + 1
        model = make_model(name, data.num_features, classes, seed=seed)
        accuracies.append(fit(model, graph, chosen.training, seed=seed).accuracy)
        losses.append(loss(model, graph, data.val_mask))
        if test:
            tests.append(accuracy(model, graph, data.test_mask))
    seconds = (time.perf_counter() - started) / seeds
    return [
        pair,
        spread(accuracies),
        spread(losses, digits=3),
        spread(tests),
        LITERATURE.get(pair, ""),
        f"{seeds} of {seconds:.0f} s",
        settings(chosen),
    ]


@torch.no_grad()
def loss(model: torch.nn.Module, graph: FixedGraph, mask: Tensor) -> float:
    """Return the cross entropy on the nodes of a mask."""
    with graph.speed_up(model.eval()) as data:
        return float(F.cross_entropy(forward(model, data)[mask], data.y[mask]))


def changed(usual: PaperTraining, text: str) -> PaperTraining:
    """Return settings with the values that a text names, as in ``epochs=500,patience=50``."""
    named = dict(part.split("=") for part in text.split(",") if part)
    normalize = bool(int(named.pop("normalize_features", usual.normalize_features)))
    kinds = {name: type(value) for name, value in usual.training.to_dict().items()}
    training = replace(usual.training, **{key: kinds[key](named[key]) for key in named})
    return PaperTraining(normalize_features=normalize, training=training)


def settings(usual: PaperTraining) -> str:
    """Name what differs from a training that nobody has chosen anything for."""
    default = TrainingConfig().to_dict()
    named = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in usual.training.to_dict().items()
        if value != default[name]
    ]
    return ", ".join([*(["rows normalised"] if usual.normalize_features else []), *named])


def spread(values: Sequence[float], digits: int = 2) -> str:
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


if __name__ == "__main__":
    main()
