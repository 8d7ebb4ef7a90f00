r"""How often a promised limit of the drop is kept, by rules and by whole searches.

Label draws: the predictions of many configurations and trainings are stored. In each draw, 500
nodes outside training are labelled and three trainings are seen. Each rule chooses the smallest
configuration whose drop it bounds by the limit. A promise is broken if the other trainings lose
more on the other nodes. A cell shows the share of broken promises, and the bytes divided by those
of the smallest configuration that truly holds, mean (median).

Early stopping: the same slope by the validation nodes, which stop the trainings, and by as many
others; with `--stopping`, by validation nodes that are drawn anew for trainings of their own.

Searches: whole searches and final reports with 500 labels drawn anew, checked by fresh trainings
on the other nodes.

    python benchmarks/promises.py --root FOLDER
    python benchmarks/promises.py --root FOLDER --collect gcn Cora
    python benchmarks/promises.py --root FOLDER --searches 30 --of gcn Cora
    python benchmarks/promises.py --root FOLDER --stopping 10 --of gcn Cora --trainings 3 \
        --configurations 10
    python benchmarks/promises.py --quick
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

import numpy as np
import numpy.typing as npt
import optuna
import torch
from prediction_table import FOLDER, PredictionTable, collect, plan_and_graph
from promise_rules import RULES, draw, judge, slope_by_nodes
from promise_searches import Choice, kept, search, with_labels
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest
from torch_geometric.data import Data

from sgquant_optuna.graph.datasets import load_graph, random_split
from sgquant_optuna.graph.training_config import PaperModel
from sgquant_optuna.study.plan import SearchPlan

SEEN_TRAININGS = 3  # as many as a search measures
QUICK_EPOCHS = 30


@dataclass(frozen=True)
class Pair:
    """Predictions of a model on a graph, with labels and masks of its nodes, ``[N]`` each."""

    table: PredictionTable
    labels: npt.NDArray[np.int64]
    outside: npt.NDArray[np.bool_]
    validation: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, table: PredictionTable, graph: Data) -> Pair:
        """Join predictions and their graph."""
        return cls(table, graph.y.numpy(), ~graph.train_mask.numpy(), graph.val_mask.numpy())


def main() -> None:
    options = parsed()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)  # on graphs of this size, several threads are slower
    if options.quick:
        quick(options)
    elif options.collect:
        model, dataset = options.collect
        plan, graph = chosen(model, dataset, options)
        path = FOLDER / f"predictions_{model}_{dataset.lower()}.npz"
        measured(plan, graph, options).save(path)
        print(f"{path.name}: {path.stat().st_size:,} bytes")
    elif options.searches or options.stopping:
        model, dataset = options.of
        plan, graph = chosen(model, dataset, options)
        if options.searches:
            searches(plan, graph, options)
        else:
            early_stopping(pairs_of_own_labels(plan, graph, options), options)
    else:
        paths = [Path(one) for one in options.files] or sorted(FOLDER.glob("predictions_*.npz"))
        tables = [PredictionTable.load(path) for path in paths]
        pairs = [Pair.of(one, load_graph(one.dataset, options.root)) for one in tables]
        label_draws(pairs, options)
        early_stopping(pairs, options)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two small graphs, nothing is kept")
    parser.add_argument("--root", help="folder of data sets; $SGQUANT_DATA or data by default")
    parser.add_argument("--draws", type=int, default=200, help="draws of labels and trainings")
    parser.add_argument("--labels", type=int, default=500, help="labelled nodes of a draw")
    parser.add_argument("--max-drop", type=float, default=0.5, help="limit of the drop, in points")
    parser.add_argument("--files", nargs="+", default=[], help="tables; all of data by default")
    parser.add_argument("--collect", nargs=2, metavar=("MODEL", "DATASET"))
    parser.add_argument("--configurations", type=int, default=40)
    parser.add_argument("--trainings", type=int, default=8)
    parser.add_argument(
        "--no-exact-inputs",
        action="store_true",
        help="search the widths of the graph's own features, too, where they could be exact",
    )
    parser.add_argument("--searches", type=int, help="number of whole searches")
    parser.add_argument("--stopping", type=int, help="number of draws of validation nodes")
    parser.add_argument("--of", nargs=2, default=["gcn", "digits"], metavar=("MODEL", "DATASET"))
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first search")
    parser.add_argument("--trials", type=int, default=20, help="trials of a search")
    parser.add_argument("--true-trainings", type=int, default=5)
    return parser.parse_args()


def chosen(
    model: PaperModel, dataset: str, options: argparse.Namespace
) -> tuple[SearchPlan, Data]:
    plan, graph = plan_and_graph(model, dataset, options.root)
    return replace(plan, exact_inputs=not options.no_exact_inputs), graph


def measured(plan: SearchPlan, graph: Data, options: argparse.Namespace) -> PredictionTable:
    sizes = {"configurations": options.configurations, "trainings": options.trainings}
    flags = " ".join(f"--{name} {value}" for name, value in sizes.items())
    command = f"python benchmarks/promises.py --collect {plan.model} {plan.dataset} {flags}"
    command += " --no-exact-inputs" if options.no_exact_inputs else ""
    return collect(plan, graph, command=command, log=note, **sizes)


def label_draws(pairs: Sequence[Pair], options: argparse.Namespace) -> None:
    """Print the table of rules and pairs."""
    shown = Table(
        title=f"{options.draws} draws, limit {options.max_drop}: broken, bytes", box=box.MARKDOWN
    )
    shown.add_column("smallest configuration by")
    cells: dict[str, list[str]] = {name: [] for name in RULES}
    for pair in pairs:
        shown.add_column(pair.table.name)
        found: dict[str, list[tuple[bool, float]]] = {name: [] for name in RULES}
        generator = np.random.default_rng(0)
        for _ in range(options.draws):
            one = draw(
                pair.table,
                pair.labels,
                pair.outside,
                generator,
                num_labels=options.labels,
                num_trainings=SEEN_TRAININGS,
            )
            for name, rule in RULES.items():
                found[name].append(judge(rule, one, pair.table.memory, options.max_drop))
        for name, judged in found.items():
            broken = fmean(is_broken for is_broken, _ in judged)
            ratios = [ratio for _, ratio in judged]
            cells[name].append(f"{broken:.2f}, {fmean(ratios):.2f} ({median(ratios):.2f})")
        note(f"{pair.table.name}: {options.draws} draws")
    for name, row in cells.items():
        shown.add_row(name, *row)
    Console(width=60 + 22 * len(pairs)).print(shown)


def early_stopping(pairs: Sequence[Pair], options: argparse.Namespace) -> None:
    """Print the slopes by the validation nodes and by as many of the other nodes."""
    shown = Table(title="slope of the drop, all trainings, no prior", box=box.MARKDOWN)
    for column in ("", "validation nodes", "as many others, mean ± deviation", "difference"):
        shown.add_column(column)
    differences = []
    for pair in pairs:
        others = np.flatnonzero(pair.outside & ~pair.validation)
        generator, slopes = np.random.default_rng(0), []
        for _ in range(max(options.draws // 4, 2)):
            labelled = np.zeros_like(pair.validation)
            size = min(pair.validation.sum(), len(others))
            labelled[generator.choice(others, size, replace=False)] = True
            slopes.append(slope_by_nodes(pair.table, pair.labels, pair.outside, labelled))
        stopping = slope_by_nodes(pair.table, pair.labels, pair.outside, pair.validation)
        mean, deviation = float(np.mean(slopes)), float(np.std(slopes, ddof=1))
        differences.append((stopping - mean) / deviation)
        shown.add_row(
            pair.table.name,
            f"{stopping:.2f}",
            f"{mean:.2f} ± {deviation:.2f}",
            f"{differences[-1]:+.1f} deviations",
        )
    Console(width=110).print(shown)
    error = float(np.std(differences)) / math.sqrt(max(len(pairs) - 1, 1))
    print(f"mean difference: {fmean(differences):+.2f} ± {error:.2f} (standard error) deviations")


def pairs_of_own_labels(plan: SearchPlan, graph: Data, options: argparse.Namespace) -> list[Pair]:
    """Train with validation nodes drawn anew, some times."""
    pairs = []
    for seed in range(options.stopping):
        drawn = with_labels(graph, options.labels, seed)
        table = measured(replace(plan, dataset=f"{plan.dataset}, draw {seed}"), drawn, options)
        pairs.append(Pair.of(table, drawn))
    return pairs


def searches(plan: SearchPlan, graph: Data, options: argparse.Namespace) -> None:
    """Run whole searches and print how many of their promises are kept."""
    plan = replace(plan, n_trials=options.trials, max_drop=options.max_drop)
    found: dict[str, list[Choice]] = {}
    for seed in range(options.first_seed, options.first_seed + options.searches):
        started = time.perf_counter()
        for name, choice in search(
            plan,
            graph,
            seed=seed,
            num_labels=options.labels,
            true_trainings=options.true_trainings,
        ).items():
            found.setdefault(name, []).append(choice)
        lines = (
            f"{name} {'promises' if one[-1].promised else 'does not promise'}, "
            f"{one[-1].true_drop:.2f} points, {one[-1].memory_bytes:,.0f} bytes"
            for name, one in found.items()
        )
        note(f"search {seed}, {time.perf_counter() - started:.0f} s: {'; '.join(lines)}")
    shown = Table(
        title=f"{plan.model} {plan.dataset}, {options.searches} searches, {plan.n_trials} trials",
        box=box.MARKDOWN,
    )
    for column in ("choice of", "promised", "kept", "95 % interval", "true drop", "kB"):
        shown.add_column(column)
    for name, choices in found.items():
        made, right = kept(choices, options.max_drop)
        low, high = binomtest(right, made).proportion_ci(method="wilson") if made else (0.0, 1.0)
        shown.add_row(
            name,
            str(made),
            str(right),
            f"{low:.2f} to {high:.2f}",
            f"{fmean(one.true_drop for one in choices):.2f}",
            f"{fmean(one.memory_bytes for one in choices) / 1000:.1f}",
        )
    Console(width=110).print(shown)


def quick(options: argparse.Namespace) -> None:
    """Go through everything with few, short trainings on two small graphs."""
    options.configurations, options.trainings, options.draws = 8, 5, 5
    options.searches, options.trials, options.true_trainings = 1, 4, 2
    plan, digits = plan_and_graph("gcn", "digits", None)
    plan = replace(plan, training=plan.training.with_epochs(QUICK_EPOCHS), final_seeds=2)
    graphs = [(plan, digits), (replace(plan, dataset="generated"), generated_graph())]
    pairs = [Pair.of(measured(one, graph, options), graph) for one, graph in graphs]
    label_draws(pairs, options)
    early_stopping(pairs, options)
    searches(*graphs[1], options)


def generated_graph(num_nodes: int = 900, num_classes: int = 3, words: int = 60) -> Data:
    """Return a graph whose edges mostly join nodes of one class, which prefer some words."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(num_nodes) % num_classes
    preferred = torch.arange(words) % num_classes == y[:, None]
    x = (torch.rand(num_nodes, words, generator=generator) < 0.05 + 0.05 * preferred).float()
    edges = torch.randint(num_nodes, (2, 8 * num_nodes), generator=generator)
    crosses = torch.rand(edges.shape[1], generator=generator) < 0.3
    edges = edges[:, (y[edges[0]] == y[edges[1]]) | crosses]
    return random_split(Data(x=x, edge_index=torch.cat([edges, edges.flip(0)], dim=1), y=y))


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
