"""Test accuracy of the paper's models at full precision, trained as `sgquant search` trains them.

Each seed is a fresh training, on the public split or on the split of seed 0. A cell shows mean and
standard deviation, in percent. The settings were chosen on the validation nodes; this opens the
test nodes.

    python benchmarks/full_precision.py --root FOLDER [--only gcn/Cora agnn/Cora] [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from sgquant_optuna.graph.datasets import load_graph
from sgquant_optuna.graph.fixed_graph import FixedGraph
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
QUICK_EPOCHS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="digits alone, two short trainings")
    parser.add_argument("--root", help="folder of data sets; $SGQUANT_DATA or data by default")
    parser.add_argument("--seeds", type=int, default=8, help="trainings of each pair")
    parser.add_argument("--only", nargs="+", default=[*LITERATURE], metavar="MODEL/DATASET")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    torch.set_num_threads(1)  # on graphs of this size, several threads are slower
    pairs, seeds = options.only, options.seeds
    if options.quick:
        pairs, seeds = [f"{model}/digits" for model in MODELS], 2

    table = Table(box=box.MARKDOWN)
    for column in ("", "validation", "test", "literature", "trainings", "settings"):
        table.add_column(column)
    for pair in pairs:
        model, dataset = pair.split("/")
        usual = paper_training(model, dataset)
        if options.quick:
            training = usual.training.with_epochs(QUICK_EPOCHS)
            usual = PaperTraining(normalize_features=True, training=training)
        started = time.perf_counter()
        validation, test = measure(model, dataset, options.root, usual, seeds)
        table.add_row(
            pair,
            spread(validation),
            spread(test),
            LITERATURE.get(pair, ""),
            str(seeds),
            settings(usual),
        )
        seconds = (time.perf_counter() - started) / seeds
        print(f"{pair}: {spread(test)}, {seconds:.0f} s a training", file=sys.stderr, flush=True)
    Console(width=150).print(table)


def measure(
    name: str, dataset: str, root: str | None, usual: PaperTraining, seeds: int
) -> tuple[list[float], list[float]]:
    """Return the accuracies on validation and test nodes of a training from each seed."""
    data = load_graph(dataset, root, normalize_features=usual.normalize_features)
    graph, classes = FixedGraph(data), int(data.y.max()) + 1
    validation, test = [], []
    for seed in range(seeds):
        model = make_model(name, data.num_features, classes, seed=seed)
        validation.append(fit(model, graph, usual.training, seed=seed).accuracy)
        test.append(accuracy(model, graph, data.test_mask))
    return validation, test


def settings(usual: PaperTraining) -> str:
    """Name what differs from a training that nobody has chosen anything for."""
    default = TrainingConfig().to_dict()
    changed = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in usual.training.to_dict().items()
        if value != default[name]
    ]
    return ", ".join([*(["rows normalised"] if usual.normalize_features else []), *changed])


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


if __name__ == "__main__":
    main()
