"""The parts that a graph is trained and evaluated in: the whole, or mini-batches of a union.

Mini-batches are made once. Which graphs are in one is drawn at random, but the same in all epochs
and trainings; only the order of the batches changes from epoch to epoch. So a batch keeps its
matrices and, within a trial, its quantized features, which costs no accuracy that could be
measured (``benchmarks/graph_batches.py --partitions``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sgquant_optuna.graph.columns import MASKS
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.node_types import Graph
from sgquant_optuna.graph.union_slices import UnionSlices

_EVALUATED = 4
"""Graphs outside training for each one of a training batch: without gradients, they take less."""
_SEED = 0


class Part(NamedTuple):
    """A part of a graph that a model is called with at once.

    Args:
        data:
            Columns of the part.
        fixed:
            The same with what is computed once; ``None`` if the model runs as PyG runs it.
        items:
            Numbers of its items in the whole, ``[n]`` int64; ``None`` for the whole.
    """

    data: Graph
    fixed: FixedGraph | None
    items: Tensor | None = None


class Parts(NamedTuple):
    """All parts of a graph.

    Args:
        training:
            Parts that hold the training items.
        others:
            Parts that hold the other items, none of them twice.
    """

    training: tuple[Part, ...]
    others: tuple[Part, ...] = ()


def whole(graph: FixedGraph | Graph) -> Parts:
    """Return a graph as its only part."""
    if isinstance(graph, FixedGraph):
        return Parts((Part(graph.data, graph),))
    return Parts((Part(graph, None),))


def mini_batches(graph: FixedGraph, batch_size: int, target_column: str) -> Parts:
    """Cut a union of graphs into mini-batches.

    Args:
        graph:
            Union with ``batch``, and with masks of graphs if it is to be trained on.
        batch_size:
            Largest number of training graphs in a batch; batches are of about equal size.
        target_column:
            Name of the column with a target for each graph.

    Raises:
        GraphError:
            If a column cannot be cut.
    """
    data = graph.data
    slices = UnionSlices(data, (target_column, *MASKS))
    count, device = int(data.batch.max()) + 1, data.batch.device
    none = torch.zeros(count, dtype=torch.bool, device=device)
    trained = data.get("train_mask", none)
    validated = data.get("val_mask", none) & ~trained
    drawn = torch.randperm(int(trained.sum()), generator=torch.Generator().manual_seed(_SEED))
    groups = (
        (trained.nonzero().flatten()[drawn.to(device)], batch_size),
        (validated.nonzero().flatten(), _EVALUATED * batch_size),
        ((~trained & ~validated).nonzero().flatten(), _EVALUATED * batch_size),
    )
    cut = []
    for items, size in groups:
        chosen = items.tensor_split(-(-len(items) // size)) if len(items) else ()
        fixed = [FixedGraph(slices.take(one)) for one in chosen]
        cut.append(tuple(Part(one.data, one, at) for one, at in zip(fixed, chosen, strict=True)))
    training, *others = cut
    return Parts(training, tuple(part for group in others for part in group))


class Chosen(NamedTuple):
    """The items of a mask that one part holds; ``rows`` is ``None`` if these are all of it."""

    part: Part
    rows: Tensor | None

    def of(self, values: Tensor) -> Tensor:
        """Return the rows of the chosen items."""
        return values if self.rows is None else values[self.rows]


class Selection:
    """The items of a mask, where the parts of a graph hold them.

    Args:
        parts:
            Parts to look in.
        mask:
            Items of the whole, ``[I]`` bool.
    """

    def __init__(self, parts: tuple[Part, ...], mask: Tensor) -> None:
        found, numbers = [], []
        for part in parts:
            own = mask if part.items is None else mask[part.items]
            if bool(own.any()):
                found.append(Chosen(part, None if bool(own.all()) else own))
                numbers.append(own.nonzero().flatten() if part.items is None else part.items[own])
        self.chosen = tuple(found)
        places = torch.cat(numbers)
        self._order = None if bool((places.diff() > 0).all()) else places.argsort()

    def gather(self, outputs: Callable[[Part], Tensor]) -> Tensor:
        """Return the outputs of all chosen items, in their order in the whole.

        Args:
            outputs:
                Function that returns the outputs for all items of a part.
        """
        found = [one.of(outputs(one.part)) for one in self.chosen]
        joined = found[0] if len(found) == 1 else torch.cat(found)
        return joined if self._order is None else joined[self._order]
