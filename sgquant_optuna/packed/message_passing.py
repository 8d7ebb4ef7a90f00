"""Message passing of a packed model: the sums of the fake-quantized one, block by block.

Every sum runs in the order in which the fake-quantized model adds up. Attention is computed,
quantized and used for a block of edges at a time: attention of all edges, ``[E, H]`` float32, is
never held. A block holds whole neighbourhoods. A neighbourhood that is larger than a block is read
three times: for the largest score, for the sum and for the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import AGNNConv, GATConv, GATv2Conv, GINConv, MessagePassing
from torch_geometric.utils import add_self_loops, remove_self_loops, softmax

from sgquant_optuna.graph.adjacency_cache import AdjacencyCache
from sgquant_optuna.graph.fixed_graph import edge_values, is_edge_list, is_sparse_product
from sgquant_optuna.packed.adjacency import Adjacency, add_rows
from sgquant_optuna.packed.blocks import cut, row_blocks
from sgquant_optuna.packed.packed_tensor import PackedTensor

ATTENTION_EDGES = 1 << 14
"""Largest number of edges whose attention is held at one time."""
EDGE_VALUES = 1 << 18
"""Largest number of float32 values in one tensor with features of edges: 1 MiB.

A block takes a few such tensors."""

Ends = TypeVar("Ends")
Score = Callable[[Tensor], tuple[Tensor, Ends]]
"""Takes edges, ``[e]``; returns scores before softmax, ``[e, H]``, and features of their ends."""
Quantize = Callable[[Tensor], Tensor]
"""Fake-quantizes attention, ``[e, H]``."""


class MessagePasser:
    """Makes the convolutions of one model pass messages block by block.

    Args:
        model:
            Plain model; its convolutions are changed in place.
        attention:
            Quantization of the attention of some convolutions, by path; ``None`` for 32 bits.

    Attributes:
        fallback: Paths of convolutions with attention that cannot be cut into blocks.
    """

    def __init__(self, model: nn.Module, attention: dict[str, Quantize | None]) -> None:
        self._adjacencies = AdjacencyCache(Adjacency)
        self.fallback: list[str] = []
        for name, conv in list(model.named_modules()):
            if not isinstance(conv, MessagePassing):
                continue
            for cache in [one for one in vars(conv) if one.startswith("_cached_")]:
                setattr(conv, cache, None)  # the user's instance may have seen another graph
            quantize = attention.get(name)
            if _has_known_scores(conv) and is_sparse_product(conv):
                conv.__dict__["edge_updater"] = EdgeInputs
                conv.__dict__["propagate"] = partial(self._attend, conv, quantize)
            elif type(conv) is AGNNConv and str(conv.aggr) == "add":
                conv.__dict__["forward"] = partial(self._agnn, conv, quantize)
            elif name in attention:
                self.fallback.append(name)
            elif is_sparse_product(conv) and not isinstance(conv, GATConv | GATv2Conv):
                conv.__dict__["propagate"] = partial(self._propagate, conv)
                if type(conv) is GINConv:
                    conv.__dict__["forward"] = partial(_gin, conv)

    def _propagate(
        self, conv: MessagePassing, edge_index: Any, size: Any = None, *, x: Any, **weights: Any
    ) -> Tensor:
        """Stand in for ``propagate`` of GCN, SAGE and GIN: one product with a sparse matrix."""
        source = x[0] if isinstance(x, tuple) else x
        if source.dim() != 2 or not is_edge_list(edge_index, size) or _has_two_sizes(x):
            plain: Tensor = type(conv).propagate(conv, edge_index, size=size, x=x, **weights)
            return plain
        adjacency = self._adjacencies.get((edge_index,), conv.flow, source.shape[0])
        values = edge_values(
            weights.get("edge_weight"), adjacency.order, adjacency.counts, str(conv.aggr)
        )
        out: Tensor = adjacency.matrix(values) @ source
        return out

    def _attend(
        self,
        conv: GATConv | GATv2Conv,
        quantize: Quantize | None,
        edge_index: Any,
        size: Any = None,
        *,
        x: Any,
        alpha: EdgeInputs,
    ) -> Tensor:
        """Stand in for ``propagate`` of GAT and GATv2."""
        source = x[0] if isinstance(x, tuple) else x
        num_nodes, heads, _ = source.shape
        if not is_edge_list(edge_index, size) or _has_two_sizes(x):
            weights = type(conv).edge_updater(conv, edge_index, size=size, **alpha.inputs)
            weights = weights if quantize is None else quantize(weights)
            plain: Tensor = type(conv).propagate(conv, edge_index, size=size, x=x, alpha=weights)
            return plain
        adjacency = self._adjacencies.get((edge_index,), conv.flow, num_nodes)
        out: Tensor = source.new_zeros(source.shape)
        limit = hub_limit = _edges_of_block(source[:1].numel())
        if isinstance(conv, GATv2Conv):  # its scores need the features of each edge
            score = gatv2_score(conv, adjacency, alpha)
        else:
            score, limit = gat_score(conv, adjacency, alpha), ATTENTION_EDGES
        for found in attend(adjacency, score, quantize, limit, hub_limit, by_source=True):
            rows, part = found.rows, found.part
            if found.is_whole:
                for head in range(heads):
                    values = found.weights[:, head].contiguous()
                    matrix = adjacency.rows_of_matrix(rows, part, values)
                    out[rows, head] = matrix @ source[:, head]
            else:
                messages = source[adjacency.col[part]].mul_(found.weights[..., None])
                hub = adjacency.col.new_zeros(len(messages), dtype=torch.long)
                add_rows(out[rows].flatten(1), hub, messages.flatten(1))
        return out

    def _agnn(
        self, conv: AGNNConv, quantize: Quantize | None, x: Tensor, edge_index: Any
    ) -> Tensor:
        """Stand in for ``forward`` of AGNN, whose scores are cosines of the packed features."""
        if not is_edge_list(edge_index, None):
            dense = x.dense() if isinstance(x, PackedTensor) else x
            plain: Tensor = type(conv).forward(conv, dense, edge_index)
            return plain
        num_nodes, num_columns = x.shape
        if conv.add_self_loops:
            edge_index, _ = remove_self_loops(edge_index)
            edge_index, _ = add_self_loops(edge_index, num_nodes=num_nodes)
        adjacency = self._adjacencies.get((edge_index,), conv.flow, num_nodes)
        out = torch.zeros(num_nodes, num_columns, device=x.device)
        score = agnn_score(conv, adjacency, x)
        for found in attend(adjacency, score, quantize, _edges_of_block(num_columns)):
            rows, source = found.ends
            target = adjacency.target[adjacency.edges(found.part)]
            add_rows(out, target, rows[source].mul_(found.weights))
        return out


def _has_two_sizes(x: Any) -> bool:
    """Whether there are more sources than targets, or fewer, as between two node types."""
    return isinstance(x, tuple) and x[1] is not None and len(x[0]) != len(x[1])


class Attended(NamedTuple, Generic[Ends]):
    """Attention of some edges.

    Args:
        rows:
            Destination nodes.
        part:
            Places of the edges in the adjacency.
        weights:
            Quantized attention, ``[e, H]``.
        ends:
            Features of the ends of the edges, if computing the scores needed them.
        is_whole:
            Whether these are all edges of the destinations.
    """

    rows: slice
    part: slice
    weights: Tensor
    ends: Ends
    is_whole: bool


def attend(
    adjacency: Adjacency,
    score: Score[Ends],
    quantize: Quantize | None,
    limit: int,
    hub_limit: int | None = None,
    *,
    by_source: bool = False,
) -> Iterator[Attended[Ends]]:
    """Compute and quantize attention block by block, as PyG's softmax does.

    Args:
        adjacency:
            Edges of the graph.
        score:
            Function that computes the scores of some edges.
        quantize:
            Function that fake-quantizes attention, ``[e, H]``; ``None`` leaves it.
        limit:
            Largest number of edges of a block.
        hub_limit:
            Largest number of edges of a part of a larger neighbourhood; ``limit`` by default.
        by_source:
            Whether to return weights in :attr:`Adjacency.order`; else in the given order.

    Yields:
        Attention of the edges of whole destinations, or of a part of one destination's edges.

    Reference:
        Softmax over the neighbours: Velickovic et al., Graph Attention Networks, eq. 2.
    """
    for rows, entries in row_blocks(adjacency.crow, limit):
        if entries.stop - entries.start > limit:
            parts = cut(entries, hub_limit or limit)
            yield from _hub(adjacency, rows, parts, score, quantize, by_source)
            continue
        edges = adjacency.edges(entries)
        scores, ends = score(edges)
        local = adjacency.target[edges] - rows.start
        weights = softmax(scores, local, None, rows.stop - rows.start)
        weights = weights if quantize is None else quantize(weights)
        weights = weights[adjacency.to_source(entries)] if by_source else weights
        yield Attended(rows, entries, weights, ends, is_whole=True)


def _hub(
    adjacency: Adjacency,
    rows: slice,
    parts: list[slice],
    score: Score[Ends],
    quantize: Quantize | None,
    by_source: bool,
) -> Iterator[Attended[Ends]]:
    """Compute attention of one destination in parts: largest score, sum of all, and result."""
    largest = torch.stack([score(adjacency.edges(p))[0].amax(dim=0) for p in parts]).amax(dim=0)
    total = torch.zeros_like(largest[None])
    for part in parts:
        shares = (score(adjacency.edges(part))[0] - largest).exp()
        add_rows(total, adjacency.col.new_zeros(len(shares), dtype=torch.long), shares)
    total += 1e-16  # as torch_geometric.utils.softmax
    for part in parts:
        edges = adjacency.edges_by_source(part) if by_source else adjacency.edges(part)
        scores, ends = score(edges)
        weights = (scores - largest).exp() / total
        weights = weights if quantize is None else quantize(weights)
        yield Attended(rows, part, weights, ends, is_whole=False)


class EdgeInputs:
    """Inputs of attention, gathered for some edges at a time.

    It takes the place of ``edge_updater`` of a convolution, which would compute all attention.
    """

    def __init__(self, edge_index: Any, size: Any = None, **inputs: Any) -> None:
        self.inputs = inputs

    def of_edges(self, adjacency: Adjacency, edges: Tensor) -> dict[str, Any]:
        """Return the arguments of ``edge_update`` for some edges."""
        source, target = adjacency.source[edges], adjacency.target[edges]
        gathered: dict[str, Any] = {}
        for name, value in self.inputs.items():
            if isinstance(value, tuple):
                of_source, of_target = value  # for both flows
                gathered[f"{name}_j"] = of_source[source]
                gathered[f"{name}_i"] = None if of_target is None else of_target[target]
            else:
                gathered[name] = None if value is None else value[edges]
        return gathered


def gat_score(conv: GATConv, adjacency: Adjacency, inputs: EdgeInputs) -> Score[None]:
    """Return the scores of GAT: those of its ``edge_update`` before softmax.

    Reference:
        Velickovic et al., Graph Attention Networks, eq. 3.
    """

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
    """Return the scores of GATv2: those of its ``edge_update`` before softmax.

    Reference:
        Brody et al., How Attentive are Graph Attention Networks?, eq. 7.
    """

    def score(edges: Tensor) -> tuple[Tensor, None]:
        given = inputs.of_edges(adjacency, edges)
        x = given["x_i"] + given["x_j"]
        if given["edge_attr"] is not None:
            x = x + _edge_features(conv, given["edge_attr"])
        return (F.leaky_relu(x, conv.negative_slope) * conv.att).sum(dim=-1), None

    return score


def agnn_score(conv: AGNNConv, adjacency: Adjacency, x: Tensor) -> Score[tuple[Tensor, Tensor]]:
    """Return the scores of AGNN, with the rows of all ends and the place of each source.

    Reference:
        Thekumparampil et al., Attention-based Graph Neural Network for Semi-supervised Learning.
    """

    def score(edges: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        ends = torch.cat([adjacency.source[edges], adjacency.target[edges]])
        nodes, place = ends.unique(return_inverse=True)
        rows = x.packed.rows(nodes) if isinstance(x, PackedTensor) else x[nodes]
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


def _has_known_scores(conv: nn.Module) -> bool:
    """Whether a convolution computes its attention as PyG's GAT or GATv2."""
    return any(
        isinstance(conv, known) and type(conv).edge_update is known.edge_update
        for known in (GATConv, GATv2Conv)
    )


def _edges_of_block(num_values: int) -> int:
    """Return the edges of a block with that many float32 values for each edge."""
    return max(1, min(ATTENTION_EDGES, EDGE_VALUES // max(1, num_values)))


def _gin(conv: GINConv, x: Tensor, edge_index: Any, size: Any = None) -> Tensor:
    """Stand in for ``forward`` of GIN: the root term is added block by block."""
    if isinstance(x, tuple):
        x = x[0]
    out = conv.propagate(edge_index, x=(x, x), size=size)
    blocks = x.packed.blocks() if isinstance(x, PackedTensor) else [(slice(None), x)]
    for nodes, block in blocks:
        out[nodes] += (1 + conv.eps) * block.to_dense()
    result: Tensor = conv.nn(out)
    return result
