"""A task: items of a graph, the kind of answers that a model gives for them, and a metric."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from sgquant_optuna.exceptions import GraphError, ModelError, TaskError
from sgquant_optuna.graph.columns import (
    MASKS,
    check_column,
    check_features_and_edges,
    column,
    label_advice,
    mask_advice,
)
from sgquant_optuna.graph.forward_pass import Forward, OfType
from sgquant_optuna.graph.node_types import Graph, check_node_types
from sgquant_optuna.graph.tasks.answer_kinds import Answers, Classes
from sgquant_optuna.graph.tasks.metrics import Metric

ItemKind = Literal["node", "graph", "link"]
BatchSize = int | Literal["auto"] | None

BATCH_COLUMN = "graphs_per_batch"
"""Setting of a union of graphs: graphs in a mini-batch, as the loader that they came in says."""
DEFAULT_BATCH_SIZE = 64
"""Graphs of a mini-batch; ``benchmarks/graph_batches.py --sizes`` compares sizes."""

_TARGETS = {"node": "y", "graph": "y", "link": "edge_label"}


@dataclass(frozen=True)
class Task:
    """What a model answers, and how that is trained and scored. Its items are masked as nodes are.

    Args:
        name:
            Name that reports show, such as ``"link prediction"``.
        items:
            ``"node"``, ``"graph"`` (of a union, with a column ``batch``) or ``"link"`` (with
            columns ``edge_label_index`` and ``edge_label``).
        answers:
            Kind of the answers.
        metric:
            Score of outputs, in the unit of which drops and limits are told.
        batch_size:
            Graphs of a mini-batch, for items ``"graph"`` alone: a number, ``None`` for all graphs
            at once, or ``"auto"`` for that of the loader that they came in, else 64.
        node_type:
            Node type of the items of a heterogeneous graph; ``None`` for a graph of one type.

    Raises:
        TaskError:
            If the batch size is none of these, or a number for other items.
    """

    name: str
    items: ItemKind
    answers: Answers
    metric: Metric
    batch_size: BatchSize = "auto"
    node_type: str | None = None

    def __post_init__(self) -> None:
        """Check the batch size."""
        size = self.batch_size
        if size is None or size == "auto":
            return
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise TaskError(
                f"batch_size of {self.name}: expected graphs, at least 1, 'auto', or None for all "
                f"at once, got {size!r}"
            )
        if self.items != "graph":
            raise TaskError(
                f"batch_size of {self.name}: expected none, because its items are of one graph, "
                f"got {size}; mini-batches are of graphs"
            )

    @property
    def target_column(self) -> str:
        """Column of the graph with the targets."""
        return _TARGETS[self.items]

    def fingerprint_on(self, data: Graph) -> list[str]:
        """Return words that tell it on a graph from other tasks."""
        size = self.batch_size_of(data)
        batches = [] if size is None else [f"batches of {size}"]
        of_type = [] if self.node_type is None else [self.node_type]
        return [self.items, self.answers.name, self.metric.name, *batches, *of_type]

    def batch_size_of(self, data: Graph) -> int | None:
        """Return the largest number of graphs in a mini-batch; ``None`` for all at once."""
        if self.items != "graph" or self.batch_size is None:
            return None
        if self.batch_size == "auto":
            return int(data.get(BATCH_COLUMN, DEFAULT_BATCH_SIZE))
        return self.batch_size

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that a search reads besides features and edges."""
        more = {"node": (), "graph": ("batch",), "link": ("edge_label_index",)}[self.items]
        return (*more, "train_mask", "val_mask", self.target_column)

    def part(self, data: Graph) -> Any:
        """Return what holds targets and masks: the graph, or the columns of the node type."""
        return data if self.node_type is None else data[self.node_type]

    def targets(self, data: Graph) -> Tensor:
        """Return the targets of all items, ``[I]`` or ``[I, C]``."""
        targets: Tensor = self.part(data)[self.target_column]
        return targets

    def num_items(self, data: Graph) -> int:
        """Return the number of items I of a graph."""
        if self.node_type is not None:
            return int(data[self.node_type].num_nodes)
        if self.items == "link":
            return int(column(data, "edge_label_index").shape[1])
        if self.items == "graph":
            batch = column(data, "batch")
            return int(batch.max()) + 1 if len(batch) else 0
        return int(column(data, "x").shape[0])

    def check(self, data: Graph) -> None:
        """Check that a graph has the columns that a training and a search need.

        Args:
            data:
                Graph with ``x`` (``[N, F]`` float), ``edge_index`` (``[2, E]`` int64) or
                ``adj_t`` (``[N, N]`` sparse), targets, ``train_mask``, ``val_mask`` and optionally
                ``test_mask`` (``[I]`` bool).

        Raises:
            GraphError:
                If a column is missing or has another type or shape, a feature is not finite or so
                large that a norm overflows, an edge ends outside the nodes, a training or
                validation item has no target, a mask is empty, or two masks overlap.
        """
        self.check_columns(data)
        count, targets, part = self.num_items(data), self.targets(data), self.part(data)
        names = MASKS if "test_mask" in part else MASKS[:2]
        masks = {name: column(part, name) for name in names}
        for name, mask in masks.items():
            fits = mask.dtype == torch.bool and mask.shape == (count,)
            check_column(fits, name, f"bool [{count}]", mask, mask_advice(name, mask))
            if name != "test_mask":
                check_column(bool(mask.any()), name, f"at least one {self.items}", "none")
                self._check_known(targets[mask], name)
        for first, second in (("train_mask", "val_mask"), *((n, "test_mask") for n in names[:2])):
            if second in masks:
                shared = int((masks[first] & masks[second]).sum())
                check_column(
                    not shared, first, f"no {self.items} of {second}", f"{shared} of them"
                )

    def check_columns(self, data: Graph) -> None:
        """Check features, edges and targets of a graph, as :meth:`check` does, but no mask."""
        if self.node_type is not None:
            check_node_types(data, self.node_type)
        else:
            check_features_and_edges(data)
            self._check_items(data)
        name, count = self.target_column, self.num_items(data)
        targets = column(self.part(data), name)
        is_class = isinstance(self.answers, Classes)
        check_column(
            self.answers.fit_targets(targets, count),
            name,
            self.answers.wanted_targets(count),
            targets,
            label_advice(targets, count) if is_class and self.items == "node" else None,
        )

    def _check_items(self, data: Data) -> None:
        """Check the columns that make items of a graph's nodes."""
        num_nodes = data.x.shape[0]
        if self.items == "link":
            ends = column(data, "edge_label_index")
            fits = ends.dtype == torch.long and ends.dim() == 2 and ends.shape[0] == 2
            check_column(fits, "edge_label_index", "int64 [2, links]", ends)
            inside = not ends.numel() or 0 <= int(ends.min()) and int(ends.max()) < num_nodes
            check_column(
                inside, "edge_label_index", f"nodes from 0 to {num_nodes - 1}", "others, too"
            )
        if self.items == "graph":
            batch = column(data, "batch")
            fits = batch.dtype == torch.long and batch.shape == (num_nodes,)
            check_column(fits, "batch", f"int64 [{num_nodes}]", batch)
            steps = batch.diff()
            in_order = bool(((steps == 0) | (steps == 1)).all()) and int(batch[0]) == 0
            expected = "the graph of each node, in order from 0, and nodes in each graph"
            check_column(in_order, "batch", expected, "others")
            if "edge_index" in data:
                source, target = batch[data.edge_index]
                between = int((source != target).sum())
                check_column(
                    not between, "edge_index", "edges within a graph", f"{between} between two"
                )

    def labels(self, data: Graph, mask: Tensor) -> Tensor:
        """Return the targets of the items of a mask, all of them known.

        Raises:
            GraphError:
                If one is unknown.
            ValueError:
                If the mask is empty, or not of this type and shape.
        """
        count = self.num_items(data)
        if mask.dtype != torch.bool or mask.shape != (count,):
            hint = "; choose one of its splits, as in mask[:, 0]" if mask.dim() == 2 else ""
            raise ValueError(
                f"accuracy: expected a mask bool [{count}], got "
                f"{str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}{hint}"
            )
        if not mask.any():
            raise ValueError(
                f"accuracy: expected a mask with at least one {self.items}, got an empty one"
            )
        targets = self.targets(data)[mask]
        self._check_known(targets, "the mask")
        return targets

    def answering(self, forward: Forward) -> Forward:
        """Return a call of a model that gives the outputs of the node type alone, if it has one.

        Args:
            forward:
                Function that calls the model with the graph.
        """
        if self.node_type is None or isinstance(forward, OfType):
            return forward
        return OfType(forward, self.node_type)

    def check_outputs(self, model: nn.Module, outputs: object, targets: Tensor) -> Tensor:
        """Return what a model returned in the shape of the targets, if it answers them.

        Args:
            model:
                Module that was called; its class is named in the error.
            outputs:
                Result of the call, as :meth:`answering` gives it.
            targets:
                Targets of all items; of classes, the largest counts.

        Raises:
            ModelError:
                If it is no float tensor of such a shape.
        """
        expected = self.answers.wanted_outputs(targets)
        advice = "return the scores alone, or pick them in a function that you pass as forward="
        if not isinstance(outputs, Tensor):
            size = f" of {len(outputs)}" if isinstance(outputs, tuple | list | dict) else ""
            got = "None" if outputs is None else f"a {type(outputs).__name__}{size}"
        else:
            got = f"{str(outputs.dtype).removeprefix('torch.')} {list(outputs.shape)}"
            if not outputs.is_floating_point():
                advice = "return real numbers, one for each class"
            elif self.answers.fit_outputs(outputs, targets):
                return self.answers.shaped(outputs, targets)
            elif outputs.dim() == 2 and outputs.shape[0] == len(targets):
                advice = "give the model as many outputs for each item"
                if isinstance(self.answers, Classes):
                    largest = int(targets.max())
                    advice = f"the largest label is {largest}: give the model an output for each"
            else:
                advice = f"return a row for each {self.items}, with a score of each class"
        raise ModelError(f"{type(model).__name__}: expected {expected}, got {got}; {advice}")

    def without_test(self, data: Graph) -> Graph:
        """Return a copy that no search can read test targets from.

        The test mask is gone, and targets outside training and validation items are unknown.
        """
        stripped = copy.copy(data)
        part = self.part(stripped)
        del part.test_mask
        seen = part.train_mask | part.val_mask
        part[self.target_column] = self.answers.hidden(self.targets(data), seen)
        return stripped

    def describe_metric(self) -> dict[str, Any]:
        """Return what a record keeps of the metric."""
        metric = self.metric
        return {
            "name": metric.name,
            "unit": metric.unit,
            "higher_is_better": metric.higher_is_better,
        }

    def _check_known(self, targets: Tensor, where: str) -> None:
        if not bool(self.answers.known(targets).all()):
            unknown = "NaN" if targets.is_floating_point() else "-1"
            raise GraphError(
                f"column {self.target_column}: expected a "
                f"{'class' if isinstance(self.answers, Classes) else 'target'} for each "
                f"{self.items} of {where}, got {unknown}"
            )
