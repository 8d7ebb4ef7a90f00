"""How often a promised limit of the drop is kept in other tasks than the classes of nodes.

As the label draws of ``promises.py``: models of several trainings are finetuned with random
configurations, on a generated graph or set of graphs. In each draw, some items outside training
are labelled and three trainings are seen. Each rule chooses the smallest configuration whose drop
it bounds by the limit; a promise is broken if the other trainings lose more on the other items.

    python benchmarks/task_promises.py            # the table of docs/promises.md
    python benchmarks/task_promises.py --quick    # two tasks, smaller and with few draws
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from prediction_table import random_configurations
from promise_rules import (
    RULES,
    Draw,
    Floats,
    expected_drop,
    judge,
    product,
    true_slope,
    validation_bound,
    validation_drop,
)
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GINConv, SAGEConv, global_add_pool
from torch_geometric.transforms import RandomLinkSplit

import sgquant_optuna as sgq
from sgquant_optuna import tasks
from sgquant_optuna.graph.tasks.task import Task
from sgquant_optuna.search.objective import QuantizationObjective
from sgquant_optuna.search.reference import reference_of

SEEN_TRAININGS = 3  # as many as a search measures
LABELS = 500
_SHOWN: dict[str, Any] = {
    "validation drop": validation_drop,
    "validation drop + 1.645 standard errors": validation_bound,
    "expected drop f alone": expected_drop,
    "ours, 90 %": product(0.9),
    "**ours, 95 %**": product(0.95),
    "ours with the true slope (unknowable), 90 %": true_slope,
    "drop on all other items (unknowable)": RULES["drop on all other nodes (unknowable)"],
}


class Sage(nn.Module):
    """Two layers."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = SAGEConv(features, 32)
        self.conv2 = SAGEConv(32, outputs)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return the outputs of all nodes."""
        hidden: Tensor = self.conv2(self.conv1(x, edge_index).relu(), edge_index)
        return hidden


class Pairs(Sage):
    """Scores of pairs of nodes by the product of their features."""

    def forward(  # type: ignore[override]
        self, x: Tensor, edge_index: Tensor, edge_label_index: Tensor
    ) -> Tensor:
        """Return the score of each pair."""
        z = super().forward(x, edge_index)
        return (z[edge_label_index[0]] * z[edge_label_index[1]]).sum(dim=1)


class Gin(nn.Module):
    """Two layers and the sum over the nodes of a graph."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = GINConv(nn.Sequential(nn.Linear(features, 32), nn.ReLU()))
        self.conv2 = GINConv(nn.Sequential(nn.Linear(32, 32), nn.ReLU()))
        self.head = nn.Linear(32, outputs)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """Return the outputs of all graphs."""
        hidden = self.conv2(self.conv1(x, edge_index), edge_index)
        outputs: Tensor = self.head(global_add_pool(hidden, batch)).squeeze(1)
        return outputs


def ring(nodes: int, generator: torch.Generator, *, features: int = 16) -> Data:
    """Return a ring with chords, and random features."""
    at = torch.arange(nodes)
    chords = torch.randint(nodes, (2, nodes), generator=generator)
    edges = torch.cat([torch.stack([at, (at + 1) % nodes]), chords], dim=1)
    x = torch.randn(nodes, features, generator=generator)
    return Data(x=x, edge_index=torch.cat([edges, edges.flip(0)], dim=1))


def of_nodes(y_of: Callable[[Tensor], Tensor], size: int) -> Data:
    """Return a graph whose targets are told by features, neighbours and noise."""
    generator = torch.Generator().manual_seed(0)
    graph = ring(size, generator)
    source, target = graph.edge_index
    summed = torch.zeros_like(graph.x).index_add_(0, target, graph.x[source])
    noise = torch.randn(graph.x.shape, generator=generator)
    graph.y = y_of(graph.x.tanh() + summed / 4 + noise / 2)
    at = torch.arange(size) % 5
    graph.train_mask, graph.val_mask, graph.test_mask = at < 1, at == 1, at > 1
    return graph


def of_graphs(y_of: Callable[[Tensor], Tensor], size: int) -> Data:
    """Return a set of small graphs whose targets are told by all their nodes and noise."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(size):
        graph = ring(8 + number % 9, generator)
        graph.y = y_of(graph.x.sum(dim=0) / 4 + torch.randn(16, generator=generator) / 2)
        made.append(graph)
    third = size // 5
    joined: Data = tasks.joined_graphs(made[:third], made[third : 2 * third], made[2 * third :])
    return joined


def of_links(size: int) -> Data:
    """Return a graph in communities, some of whose links are to be told."""
    generator = torch.Generator().manual_seed(0)
    graph = ring(size, generator)
    group = torch.randint(24, (size,), generator=generator)
    centre = torch.randn(24, graph.x.shape[1], generator=generator)
    graph.x = graph.x + centre[group]
    order = group.argsort()
    ends = torch.randint(size, (2 * size,), generator=generator)
    near = (ends + torch.randint(1, 40, (2 * size,), generator=generator)).clamp(max=size - 1)
    edges = torch.stack([order[ends], order[near]])
    graph.edge_index = torch.cat([edges, edges.flip(0)], dim=1)
    torch.manual_seed(0)
    cut = RandomLinkSplit(0.1, 0.3, is_undirected=True, add_negative_train_samples=True)
    joined: Data = tasks.joined_links(*cut(graph))
    return joined


@dataclass(frozen=True)
class Case:
    """A task, its data of some size, a model, and the limit of the drop in its unit."""

    task: Task
    data: Callable[[int], Data]
    size: int
    model: type[nn.Module]
    outputs: int
    limit: float


CASES = {
    "regression, MAE": Case(
        tasks.regression(), lambda n: of_nodes(lambda z: z[:, 0], n), 2700, Sage, 1, 0.02
    ),
    "multi-label, micro-F1": Case(
        tasks.multi_label(),
        lambda n: of_nodes(lambda z: (z[:, :4] > 0).float(), n),
        2700,
        Sage,
        4,
        2.0,
    ),
    "links, AUC": Case(tasks.link_prediction(), of_links, 2700, Pairs, 16, 1.0),
    "graph classes, accuracy": Case(
        tasks.graph_classification(),
        lambda n: of_graphs(lambda z: (z[0] > 0).long()[None], n),
        2000,
        Gin,
        2,
        1.5,
    ),
    "graph values, MAE": Case(
        tasks.graph_regression(), lambda n: of_graphs(lambda z: z[:1], n), 2000, Gin, 1, 0.02
    ),
}


@dataclass(frozen=True)
class Outputs:
    """Outputs of all trainings S and configurations C, with the bytes of each.

    Args:
        data:
            Graph with all targets.
        full:
            Outputs of full precision, one for each training.
        quantized:
            Outputs of each configuration, one for each training.
        memory:
            Honest memory of each configuration, in bytes.
    """

    data: Data
    full: list[Tensor]
    quantized: list[list[Tensor]]
    memory: Floats


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two tasks and five draws")
    parser.add_argument("--only", nargs="+", choices=list(CASES), metavar="TASK")
    parser.add_argument("--draws", type=int, default=60)
    parser.add_argument("--configurations", type=int, default=20)
    parser.add_argument("--trainings", type=int, default=6)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    torch.set_num_threads(1)
    names = options.only or list(CASES)
    if options.quick:
        names, options.draws, options.configurations, options.trainings = names[:2], 5, 6, 4
    cells: dict[str, list[str]] = {name: [] for name in _SHOWN}
    heads = []
    for name in names:
        case, started = CASES[name], time.perf_counter()
        outputs = measured(case, options)
        judged = draws(case, outputs, options.draws)
        within = fmean(truth(case, outputs) <= case.limit)
        heads.append(f"{name}, limit {case.limit:g}")
        for rule, found in judged.items():
            broken = fmean(is_broken for is_broken, _ in found)
            ratios = [ratio for _, ratio in found]
            cells[rule].append(f"{broken:.2f}, {fmean(ratios):.2f} ({median(ratios):.2f})")
        seconds = time.perf_counter() - started
        note = f"{within:.0%} of the configurations are within the limit, {seconds:.0f} s"
        print(f"{name}: {note}", file=sys.stderr)
    print(f"| smallest configuration by | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for rule, row in cells.items():
        print(f"| {rule} | {' | '.join(row)} |")


def measured(case: Case, options: argparse.Namespace) -> Outputs:
    """Train, and finetune with random configurations."""
    data = case.data(case.size // (4 if options.quick else 1))
    models = []
    for seed in range(options.trainings):
        torch.manual_seed(seed)
        model = case.model(data.num_features, case.outputs)
        sgq.fit(model, data, sgq.TrainingConfig(epochs=60), seed=seed, task=case.task)
        models.append(model)
    objective = QuantizationObjective(models, data, task=case.task, exact_inputs=False)

    def finetuned(bits: sgq.BitWidths) -> list[Tensor]:
        found = []
        for seed, model in enumerate(objective.models):
            tuned, _ = model.finetune(bits, objective.config.finetuning, seed=seed)
            found.append(model.scores(tuned).detach())
        return found

    space = objective.search_space
    chosen = list(random_configurations(space, options.configurations))
    return Outputs(
        data,
        finetuned(objective.full_precision),
        [finetuned(space.from_params(params)) for params in chosen],
        np.array([objective.memory_bytes(params) for params in chosen]),
    )


def truth(case: Case, outputs: Outputs) -> Floats:
    """Return the drop of each configuration by all trainings, on all items outside training."""
    outside = ~case.task.part(outputs.data).train_mask
    return drops(case.task, outputs, outside, range(len(outputs.full)))


def drops(task: Task, outputs: Outputs, items: Tensor, trainings: Any) -> Floats:
    """Return the mean drop of each configuration by some trainings on some items."""
    targets, metric = task.targets(outputs.data)[items], task.metric
    full = {at: metric(outputs.full[at][items], targets) for at in trainings}
    return np.array(
        [
            fmean(metric.drop(full[at], metric(one[at][items], targets)) for at in trainings)
            for one in outputs.quantized
        ]
    )


def draws(case: Case, outputs: Outputs, count: int) -> dict[str, list[tuple[bool, float]]]:
    """Judge all rules by some draws of labels and trainings."""
    generator = np.random.default_rng(0)
    found: dict[str, list[tuple[bool, float]]] = {name: [] for name in _SHOWN}
    for _ in range(count):
        one = draw(case.task, outputs, generator)
        for name, rule in _SHOWN.items():
            found[name].append(judge(rule, one, outputs.memory, case.limit))
    return found


def draw(task: Task, outputs: Outputs, generator: np.random.Generator) -> Draw:
    """Label some items outside training, see some trainings, and let the others tell the truth."""
    data = copy.copy(outputs.data)
    part = task.part(data)
    outside = ~part.train_mask
    places = np.flatnonzero(outside.numpy())
    count = min(LABELS, len(places) // 3)
    labelled = torch.zeros_like(outside)
    labelled[torch.from_numpy(generator.choice(places, count, replace=False))] = True
    part.val_mask = labelled
    order = generator.permutation(len(outputs.full)).tolist()
    seen, unseen = order[:SEEN_TRAININGS], order[SEEN_TRAININGS:]
    others = outside & ~labelled
    reference = reference_of(task, [(outputs.full[at], 0.0) for at in seen], data)
    trials = []
    for by_training in outputs.quantized:
        predicted = [reference.predictions(by_training[at]) for at in seen]
        trials.append((reference.flips(predicted), reference.evidence(predicted)))
    return Draw(
        trials,
        true_drop=drops(task, outputs, others, unseen),
        seen_drop=drops(task, outputs, others, seen),
    )


if __name__ == "__main__":
    main()
