"""Ready tasks, and how several graphs or sets of links become one graph with masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from sgquant_optuna.exceptions import GraphError, TaskError
from sgquant_optuna.graph.columns import MASKS
from sgquant_optuna.graph.tasks.answer_kinds import Answers, Classes, Labels, Values
from sgquant_optuna.graph.tasks.graph_lists import (
    Graphs,
    Places,
    batch_size_of,
    check_alike,
    graph_lists,
    picked,
)
from sgquant_optuna.graph.tasks.metrics import (
    Metric,
    hits,
    macro_roc_auc,
    mean_absolute_error,
    micro_f1,
    mrr,
    right_answers,
    roc_auc,
    root_mean_squared_error,
)
from sgquant_optuna.graph.tasks.task import BATCH_COLUMN, BatchSize, ItemKind, Task

AnyMetric = str | Metric | Callable[[Tensor, Tensor], float]

_OF_CLASSES = {one.name: one for one in (right_answers,)}
_OF_LABELS = {one.name: one for one in (micro_f1, macro_roc_auc)}
_OF_VALUES = {one.name: one for one in (mean_absolute_error, root_mean_squared_error)}
_OF_LINKS = {"AUC": roc_auc, "MRR": mrr}


def node_classification(metric: AnyMetric = "accuracy", *, node_type: str | None = None) -> Task:
    """Return the task that gives each node a class: the default everywhere.

    Args:
        metric:
            ``"accuracy"``, or a metric of your own: a :class:`Metric`, or a function of outputs
            ``[I, C]`` and targets ``[I]``.
        node_type:
            Node type whose nodes are classified, in a heterogeneous graph.
    """
    return _task(
        "node classification", "node", Classes(), metric, _OF_CLASSES, node_type=node_type
    )


def multi_label(metric: AnyMetric = "micro-F1", *, node_type: str | None = None) -> Task:
    """Return the task that gives each node several labels: ``y`` of 0 and 1, ``[N, C]``.

    Args:
        metric:
            ``"micro-F1"``, ``"ROC-AUC"`` (mean over the labels), or one of your own.
        node_type:
            Node type whose nodes are labelled, in a heterogeneous graph.
    """
    return _task(
        "multi-label classification", "node", Labels(2), metric, _OF_LABELS, node_type=node_type
    )


def regression(metric: AnyMetric = "MAE", *, node_type: str | None = None) -> Task:
    """Return the task that gives each node a value, or several: ``y`` float, ``[N]`` or [N, C].

    Args:
        metric:
            ``"MAE"``, ``"RMSE"``, or one of your own. The limit of a search is in its unit.
        node_type:
            Node type whose nodes have values, in a heterogeneous graph.
    """
    return _task("node regression", "node", Values(), metric, _OF_VALUES, node_type=node_type)


def graph_classification(
    metric: AnyMetric = "accuracy", *, batch_size: BatchSize = "auto"
) -> Task:
    """Return the task that gives each graph of a union a class; :func:`joined_graphs` makes one.

    Args:
        metric:
            ``"accuracy"``, or one of your own.
        batch_size:
            Graphs of a mini-batch; see :class:`Task`. The graphs are dealt to mini-batches once,
            at random; each epoch takes these in another order.
    """
    answers = Classes()
    return _task("graph classification", "graph", answers, metric, _OF_CLASSES, batch_size)


def graph_multi_label(metric: AnyMetric = "micro-F1", *, batch_size: BatchSize = "auto") -> Task:
    """Return the task that gives each graph several labels: ``y`` of 0 and 1, ``[G, C]``.

    Args:
        metric:
            ``"micro-F1"``, ``"ROC-AUC"`` (mean over the labels), or one of your own.
        batch_size:
            Graphs of a mini-batch, as for :func:`graph_classification`.
    """
    name = "multi-label graph classification"
    return _task(name, "graph", Labels(2), metric, _OF_LABELS, batch_size)


def graph_regression(metric: AnyMetric = "MAE", *, batch_size: BatchSize = "auto") -> Task:
    """Return the task that gives each graph of a union a value; :func:`joined_graphs` makes one.

    Args:
        metric:
            ``"MAE"``, ``"RMSE"``, or one of your own.
        batch_size:
            Graphs of a mini-batch, as for :func:`graph_classification`.
    """
    return _task("graph regression", "graph", Values(), metric, _OF_VALUES, batch_size)


def link_prediction(metric: AnyMetric = "AUC") -> Task:
    """Return the task that tells links from pairs of nodes without one.

    The graph has ``edge_label_index`` (``[2, L]``) and ``edge_label`` (``[L]``, 0 or 1), and masks
    of these pairs; :func:`joined_links` makes it of the three graphs of PyG's ``RandomLinkSplit``.
    The model returns a score for each pair: ``forward(x, edge_index, edge_label_index)``.

    Args:
        metric:
            ``"AUC"``, ``"MRR"``, ``"Hits@K"`` with a number K, or one of your own.
    """
    known = dict(_OF_LINKS)
    if isinstance(metric, str) and metric.startswith("Hits@") and metric[5:].isdigit():
        known[metric] = hits(int(metric[5:]))
    return _task("link prediction", "link", Labels(1), metric, known)


def _task(
    name: str,
    items: ItemKind,
    answers: Answers,
    metric: AnyMetric,
    known: dict[str, Metric],
    batch_size: BatchSize = "auto",
    node_type: str | None = None,
) -> Task:
    if node_type is not None and not isinstance(node_type, str):
        raise TaskError(f"node_type: expected the name of a node type, got {node_type!r}")
    if isinstance(metric, str):
        if metric not in known:
            hint = ", Hits@K" if items == "link" else ""
            raise TaskError(
                f"metric of {name}: expected one of {', '.join(known)}{hint}, a Metric, or a "
                f"function of outputs and targets, got {metric!r}"
            )
        metric = known[metric]
    return Task(name, items, answers, Metric.of(metric), batch_size, node_type)


def inductive(train: Graphs, val: Graphs, test: Graphs | None = None) -> Data:
    """Join graphs for a task of nodes: training, validation and test on graphs of their own.

    The union has no edge between two graphs, so a model gives each node what it gave it before.

    Args:
        train:
            Graphs whose nodes are trained on, such as a list, a data set or a loader.
        val:
            Graphs of the validation nodes.
        test:
            Graphs of the test nodes.

    Returns:
        One graph with ``train_mask``, ``val_mask`` and ``test_mask``, ``[N]``.

    Raises:
        GraphError:
            If there is no graph, or one cannot be joined with the others.
    """
    parts = graph_lists((train, val, test))
    check_alike(parts)
    joined = _union([graph for part in parts.values() for graph in part])
    sizes = {
        name: sum(int(graph.num_nodes or 0) for graph in part) for name, part in parts.items()
    }
    return _with_masks(joined, sizes)


def joined_graphs(
    train: Graphs | Places,
    val: Graphs | Places,
    test: Graphs | Places | None = None,
    *,
    graphs: Graphs | None = None,
) -> Data:
    """Join graphs for a task of whole graphs, each with a target ``y``.

    Args:
        train:
            Graphs to train on: a list, a data set, or a loader. The batch size of a loader becomes
            that of a task with ``batch_size="auto"``.
        val:
            Graphs of the validation set.
        test:
            Graphs of the test set.
        graphs:
            Graphs of all splits, if ``train``, ``val`` and ``test`` are numbers among them, or
            masks, ``[G]`` bool; graphs in no split are left out.

    Returns:
        One graph with ``batch`` (``[N]``, the graph of each node), ``y`` (``[G]``, or a row for
        each) and masks, ``[G]``.

    Raises:
        GraphError:
            If there is no graph, a loader does not say its graphs, a graph is in two splits, or
            one has no nodes, features, edges or target, or others than the first.
    """
    size = batch_size_of(train if graphs is None else graphs)
    splits: Any = (train, val, test)
    if graphs is not None:
        splits = picked(graphs, *splits)
    parts = graph_lists(splits)
    check_alike(parts, target="y")
    joined = _union([graph for part in parts.values() for graph in part])
    if joined.y.dim() == 2 and joined.y.shape[1] == 1:
        joined.y = joined.y.flatten()
    if size is not None:
        joined[BATCH_COLUMN] = size
    return _with_masks(joined, {name: len(part) for name, part in parts.items()})


def joined_links(train: Data, val: Data, test: Data | None = None) -> Data:
    """Join what PyG's ``RandomLinkSplit`` returns for a task of links.

    Messages pass along the training graph's ``edge_index`` in all splits.

    Args:
        train:
            Graph with ``edge_label_index`` and ``edge_label``; with negative pairs
            (``add_negative_train_samples=True``).
        val:
            The same graph with the validation pairs.
        test:
            The same graph with the test pairs.

    Raises:
        GraphError:
            If a graph lacks such a column, or they differ in their number of nodes.
    """
    parts = {"train_mask": train, "val_mask": val, **({} if test is None else {"test_mask": test})}
    for name, part in parts.items():
        for wanted in ("edge_label_index", "edge_label"):
            if wanted not in part:
                raise GraphError(
                    f"column {wanted}: expected one in the graph of {name}, it has "
                    f"{', '.join(sorted(part.keys()))}"
                )
        if part.num_nodes != train.num_nodes:
            raise GraphError(
                f"graph of {name}: expected the {train.num_nodes} nodes of the training graph, "
                f"got {part.num_nodes}"
            )
    joined = train.clone()
    joined.edge_label_index = torch.cat([part.edge_label_index for part in parts.values()], dim=1)
    joined.edge_label = torch.cat([part.edge_label for part in parts.values()])
    return _with_masks(joined, {name: len(part.edge_label) for name, part in parts.items()})


def _union(graphs: list[Data]) -> Data:
    columns = set.intersection(*(set(graph.keys()) for graph in graphs)) - {*MASKS, "batch", "ptr"}
    batch = Batch.from_data_list(
        [Data(**{name: graph[name] for name in columns}) for graph in graphs]
    )
    joined = Data(**{name: batch[name] for name in columns if isinstance(batch[name], Tensor)})
    joined.batch = batch.batch
    return joined


def _with_masks(data: Data, sizes: dict[str, int]) -> Data:
    total, start = sum(sizes.values()), 0
    for name, size in sizes.items():
        mask = torch.zeros(total, dtype=torch.bool)
        mask[start : start + size] = True
        data[name] = mask
        start += size
    return data
