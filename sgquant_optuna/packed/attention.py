"""Attention of a few edges at a time: that of all edges, ``[E, H]``, never exists.

A block holds whole neighbourhoods. One that is larger than a block is gone through three times,
for the largest score, for their sum and for the result, so that a hub takes no more than a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.nn import AGNNConv, GATConv, GATv2Conv
from torch_geometric.utils import softmax

from sgquant_optuna.packed.adjacency import Adjacency, add_rows, parts_of, row_blocks
from sgquant_optuna.packed.packed_tensor import rows_of

Kept = TypeVar("Kept")
Score = Callable[[Tensor], tuple[Tensor, Kept]]
"""Takes edges, ``[e]``; returns scores before softmax, ``[e, H]``, and what to keep of them."""
Quantize = Callable[[Tensor], Tensor]


class Attended(NamedTuple, Generic[Kept]):
    """Attention of some edges.

    Args:
        rows:
            Destinations.
        part:
            Where the edges are in the adjacency.
        weights:
            Quantized attention, ``[e, H]``.
        kept:
            What their scores left.
        is_whole:
            Whether these are all edges of the destinations.
    """

    rows: slice
    part: slice
    weights: Tensor
    kept: Kept
    is_whole: bool


def attend(
    adjacency: Adjacency,
    score: Score[Kept],
    quantize: Quantize | None,
    limit: int,
    hub_limit: int | None = None,
    *,
    by_source: bool = False,
) -> Iterator[Attended[Kept]]:
    """Compute and quantize attention block by block, as PyG's softmax does.

    Args:
        adjacency:
            The edges.
        score:
            Computes the scores of some.
        quantize:
            Fake-quantizes attention, ``[e, H]``; ``None`` leaves it.
        limit:
            Edges of a block.
        hub_limit:
            Edges of a part of a neighbourhood that is larger than a block; ``limit`` by default.
        by_source:
            Whether weights come in :attr:`Adjacency.order`; else as the edges came.
    """
    for rows, entries in row_blocks(adjacency.crow, limit):
        if entries.stop - entries.start > limit:
            parts = parts_of(entries, hub_limit or limit)
            yield from _hub(adjacency, rows, parts, score, quantize, by_source)
            continue
        edges = adjacency.edges(entries)
        scores, kept = score(edges)
        local = adjacency.target[edges] - rows.start
        weights = softmax(scores, local, None, rows.stop - rows.start)
        weights = weights if quantize is None else quantize(weights)
        weights = weights[adjacency.to_source(entries)] if by_source else weights
        yield Attended(rows, entries, weights, kept, is_whole=True)


def _hub(
    adjacency: Adjacency,
    rows: slice,
    parts: list[slice],
    score: Score[Kept],
    quantize: Quantize | None,
    by_source: bool,
) -> Iterator[Attended[Kept]]:
    largest = torch.stack([score(adjacency.edges(p))[0].amax(dim=0) for p in parts]).amax(dim=0)
    total = torch.zeros_like(largest[None])
    for part in parts:
        shares = (score(adjacency.edges(part))[0] - largest).exp()
        add_rows(total, adjacency.col.new_zeros(len(shares), dtype=torch.long), shares)
    total += 1e-16  # as PyG's softmax
    for part in parts:
        edges = adjacency.edges_by_source(part) if by_source else adjacency.edges(part)
        scores, kept = score(edges)
        weights = (scores - largest).exp() / total
        weights = weights if quantize is None else quantize(weights)
        yield Attended(rows, part, weights, kept, is_whole=False)


class EdgeInputs:
    """What attention is computed from, once it is known for which edges.

    It takes the place of ``edge_updater`` of a convolution, which would compute all of it.
    """

    def __init__(self, edge_index: Any, size: Any = None, **inputs: Any) -> None:
        self.inputs = inputs

    def of_edges(self, adjacency: Adjacency, edges: Tensor) -> dict[str, Any]:
        """Return the arguments of ``edge_update`` for some edges."""
        source, target = adjacency.source[edges], adjacency.target[edges]
        gathered: dict[str, Any] = {}
        for name, value in self.inputs.items():
            if isinstance(value, tuple):
                of_source, of_target = value  # whichever way the edges point
                gathered[f"{name}_j"] = of_source[source]
                gathered[f"{name}_i"] = None if of_target is None else of_target[target]
            else:
                gathered[name] = None if value is None else value[edges]
        return gathered


def gat_score(conv: GATConv, adjacency: Adjacency, inputs: EdgeInputs) -> Score[None]:
    """Scores of GAT, as its ``edge_update`` has them before softmax."""

    def score(edges: Tensor) -> tuple[Tensor, None]:
        given = inputs.of_edges(adjacency, edges)
        alpha = given["alpha_j"]
        if given["alpha_i"] is not None:
            alpha = alpha + given["alpha_i"]
        if given["edge_attr"] is not None and conv.lin_edge is not None:
            alpha = alpha + (_edge_features(conv, given["edge_attr"]) * conv.att_edge).sum(dim=-1)
        return F.leaky_relu(alpha, conv.negative_slope), None

    return score


def gatv2_score(conv: GATv2Conv, adjacency: Adjacency, inputs: EdgeInputs) -> Score[None]:
    """Scores of GATv2, as its ``edge_update`` has them before softmax."""

    def score(edges: Tensor) -> tuple[Tensor, None]:
        given = inputs.of_edges(adjacency, edges)
        x = given["x_i"] + given["x_j"]
        if given["edge_attr"] is not None:
            x = x + _edge_features(conv, given["edge_attr"])
        return (F.leaky_relu(x, conv.negative_slope) * conv.att).sum(dim=-1), None

    return score


def agnn_score(conv: AGNNConv, adjacency: Adjacency, x: Tensor) -> Score[tuple[Tensor, Tensor]]:
    """Scores of AGNN; they leave the rows of all ends, and which of them are the sources."""

    def score(edges: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        ends = torch.cat([adjacency.source[edges], adjacency.target[edges]])
        nodes, place = ends.unique(return_inverse=True)
        rows = rows_of(x, nodes)
        unit = F.normalize(rows, p=2.0, dim=-1)
        source, target = place.view(2, -1)
        scores = conv.beta * (unit[target] * unit[source]).sum(dim=-1)
        return scores[:, None], (rows, source)

    return score


def _edge_features(conv: GATConv | GATv2Conv, edge_attr: Tensor) -> Tensor:
    if edge_attr.dim() == 1:
        edge_attr = edge_attr.view(-1, 1)
    features: Tensor = conv.lin_edge(edge_attr)
    return features.view(-1, conv.heads, conv.out_channels)
