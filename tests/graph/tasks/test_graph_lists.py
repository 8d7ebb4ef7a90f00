"""Graphs at the door: lists, data sets and loaders that are taken, and what is refused."""

import math

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, SubsetRandomSampler, WeightedRandomSampler
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GINConv, global_add_pool

import sgquant_optuna as sgq
from sgquant_optuna import tasks
from sgquant_optuna.exceptions import GraphError, TaskError
from sgquant_optuna.graph.training_config import TrainingConfig


def path(nodes, y=0, **columns):
    at = torch.arange(nodes - 1)
    given = {"x": torch.full((nodes, 2), float(nodes)), "edge_index": torch.stack([at, at + 1])}
    return Data(**{**given, "y": torch.tensor([y]), **columns})


def paths(*sizes):
    return [path(nodes, y=nodes % 2) for nodes in sizes]


def sizes_of(data):
    return {
        name: data.batch.bincount()[data[name]].tolist() for name in ("train_mask", "val_mask")
    }


class Endless(IterableDataset):
    def __iter__(self):
        yield from paths(1, 2)


def test_graphs_of_a_loader_are_taken_once_each_and_draw_nothing():
    before = torch.random.get_rng_state()
    loader = DataLoader(paths(1, 2, 3), batch_size=2, shuffle=True, drop_last=True)
    joined = tasks.joined_graphs(loader, DataLoader(paths(4, 5), batch_size=1))
    assert sizes_of(joined) == {"train_mask": [1, 2, 3], "val_mask": [4, 5]}
    assert tasks.graph_classification().batch_size_of(joined) == 2
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_loader_of_some_graphs_gives_these():
    loader = DataLoader(paths(1, 2, 3), batch_size=2, sampler=SubsetRandomSampler([2, 0]))
    assert sizes_of(tasks.joined_graphs(loader, paths(4)))["train_mask"] == [3, 1]


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ([2, 0], [1]),
        (torch.tensor([2, 0]), np.array([1])),
        (range(2, -1, -2), (1,)),
    ],
)
def test_splits_may_be_numbers_of_graphs(train, val):
    joined = tasks.joined_graphs(train, val, graphs=paths(1, 2, 3, 4))
    assert sizes_of(joined) == {"train_mask": [3, 1], "val_mask": [2]}


def test_splits_may_be_masks_of_the_graphs_of_a_loader():
    at = torch.arange(4)
    loader = DataLoader(paths(1, 2, 3, 4), batch_size=3)
    joined = tasks.joined_graphs(at % 2 == 0, [False, True, False, False], at == 3, graphs=loader)
    assert sizes_of(joined) == {"train_mask": [1, 3], "val_mask": [2]}
    assert tasks.graph_classification().batch_size_of(joined) == 3


def test_a_graph_without_edges_is_a_graph():
    lonely = path(1)
    joined = tasks.joined_graphs([lonely, path(3, y=1)], [lonely])
    task = tasks.graph_classification(batch_size=1)
    task.check(joined)

    class Gin(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = GINConv(torch.nn.Linear(2, 2))

        def forward(self, x, edge_index, batch):
            return global_add_pool(self.conv(x, edge_index), batch)

    result = sgq.fit(Gin(), joined, TrainingConfig(epochs=2), task=task)
    assert all(map(math.isfinite, result.losses))


REFUSED = {
    "empty list": ([], "graphs of train_mask: expected at least one, got none"),
    "empty loader": (lambda: DataLoader([], batch_size=2), "expected at least one, got none"),
    "loader without length": (
        lambda: DataLoader(Endless(), batch_size=2),
        "graphs of train_mask: expected a loader with a length",
    ),
    "loader that repeats": (
        lambda: DataLoader(paths(1, 2), sampler=WeightedRandomSampler([0.5, 0.5], 2)),
        "each of its graphs once an epoch, got one with a WeightedRandomSampler",
    ),
    "nothing": (None, "expected a list, a data set or a loader of graphs, got NoneType"),
    "other features": (
        [path(2), path(2, x=torch.ones(2, 5))],
        "train_mask, number 1: expected the same number of features in all, got 2 and 5",
    ),
    "no features": ([path(2, x=None)], "number 0: column x: expected features .*, got none"),
    "no nodes": ([path(1), path(1, x=torch.ones(0, 2))], "number 1: expected at least one node"),
    "no edge_index": ([path(2, edge_index=None)], "edge_index: expected one, got none; .*empty"),
    "edges of floats": (
        [path(1, edge_index=torch.tensor([[], []]))],
        r"edge_index: expected int64 \[2, E\], got float32 \[2, 0\]",
    ),
    "edges elsewhere": (
        [path(2, edge_index=torch.tensor([[0], [2]]))],
        "edge_index: expected nodes from 0 to 1, got 0 to 2",
    ),
    "no label": ([path(2), path(2).update({"y": None})], "number 1: column y: expected a target"),
    "a bare number": (
        [path(2).update({"y": 1})],
        r"column y: expected a target .* a int; data.y = torch.tensor\(\[data.y\]\)",
    ),
    "labels without a row": (
        [path(2).update({"y": torch.zeros(3)})],
        r"y: expected one row for the graph, .*got \[3\]; data.y = data.y\[None\]",
    ),
    "other labels": (
        [path(2), path(2).update({"y": torch.zeros(1, 2)})],
        r"the same type and shape in all, got int64 \[1\] and float32 \[1, 2\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_list_of_like_graphs_is_refused(case):
    train, message = REFUSED[case]
    with pytest.raises(GraphError, match=message):
        tasks.joined_graphs(train() if callable(train) else train, paths(2))


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ([0, 1], [1], "graphs of train, val and test: expected each graph once, got 1"),
        ([0, 4], [1], "graphs of train: expected numbers from 0 to 3, got 0 to 4"),
        ([0], [-1], "graphs of val: expected numbers from 0 to 3, got -1 to -1"),
        ([True, False], [1], r"of train: expected numbers .*bool \[4\], got bool \[2\]"),
        ([0.5], [1], r"graphs of train: expected numbers .*got float32 \[1\]"),
        (
            paths(1),
            [1],
            "graphs of train: expected numbers or a mask of the given graphs, got a list",
        ),
        ([0], [], "val_mask: expected at least one, got none"),
    ],
)
def test_places_that_are_no_graphs_are_refused(train, val, message):
    with pytest.raises(GraphError, match=message):
        tasks.joined_graphs(train, val, graphs=paths(1, 2, 3, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (tasks.graph_classification, r"column y: expected int64 \[3\], got float32 \[3, 2\]"),
        (tasks.graph_multi_label, r"column y: expected 0 or 1, \[3, labels\]"),
    ],
)
def test_labels_of_another_shape_than_the_task_are_refused(make, message):
    made = [path(2).update({"y": torch.full((1, 2), 0.5)}) for _ in range(3)]
    with pytest.raises(GraphError, match=message):
        make().check(tasks.joined_graphs(made[:2], made[2:]))


def test_a_metric_that_is_no_number_is_refused():
    data = tasks.joined_graphs(paths(1, 2), paths(3))
    task = tasks.graph_classification(lambda outputs, targets: math.nan, batch_size=1)
    with pytest.raises(TaskError, match="expected a finite number for 1 items, got nan"):
        sgq.accuracy(_Pool(), data, data.val_mask, task=task)


@pytest.mark.parametrize("kind", [list, DataLoader])
def test_graphs_that_are_not_joined_are_refused_with_the_way_to_join_them(kind):
    with pytest.raises(GraphError, match=f"got a {kind.__name__}; .*tasks.joined_graphs"):
        sgq.fit(_Pool(), kind(paths(1, 2)), task=tasks.graph_classification())


def test_an_edge_between_two_graphs_of_a_union_is_refused():
    data = tasks.joined_graphs(paths(1, 2), paths(3))
    data.edge_index[0, 0] = 0
    with pytest.raises(GraphError, match="edge_index: expected edges within a graph, got 1"):
        tasks.graph_classification().check(data)


class _Pool(torch.nn.Module):
    def forward(self, x, edge_index, batch):
        return global_add_pool(x, batch)
