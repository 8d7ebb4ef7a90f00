"""Message passing of a packed model: the sums of the fake-quantized one, block by block.

Attention is computed, quantized and used for a few edges at a time (:mod:`.attention`), so that
``[E, H]`` float32 never exists. Every sum runs in the order in which the fake-quantized model adds
up.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import AGNNConv, GATConv, GATv2Conv, GCNConv, GINConv, MessagePassing
from torch_geometric.utils import add_self_loops, remove_self_loops

from sgquant_optuna.graph.adjacency_cache import AdjacencyCache
from sgquant_optuna.graph.fixed_graph import edge_values, is_edge_list, is_sparse_product
from sgquant_optuna.packed.adjacency import Adjacency, add_rows
from sgquant_optuna.packed.attention import (
    EdgeInputs,
    Quantize,
    agnn_score,
    attend,
    gat_score,
    gatv2_score,
)
from sgquant_optuna.packed.packed_tensor import PackedTensor, blocks_of

BLOCK_EDGES = 1 << 14
"""Edges whose attention exists at one time, where features of edges are not wide."""
_BLOCK_VALUES = 1 << 18
"""Float32 values of edges in one of the few tensors that a block of wide ones takes: 1 MiB."""


class MessagePasser:
    """Makes the convolutions of one model pass messages block by block.

    Args:
        model:
            A plain model; its convolutions are changed in place.
        attention:
            How the attention of some convolutions is quantized, by path.

    Attributes:
        fallback: Paths of convolutions with attention that this class cannot cut into blocks.
    """

    def __init__(self, model: nn.Module, attention: dict[str, Quantize | None]) -> None:
        self._adjacencies = AdjacencyCache(Adjacency)
        self.fallback: list[str] = []
        for name, conv in list(model.named_modules()):
            if not isinstance(conv, MessagePassing):
                continue
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
                if isinstance(conv, GCNConv):
                    conv.cached = conv.normalize  # a packed model knows one graph
                if type(conv) is GINConv:
                    conv.__dict__["forward"] = partial(_gin, conv)

    def _propagate(
        self, conv: MessagePassing, edge_index: Any, size: Any = None, *, x: Any, **weights: Any
    ) -> Tensor:
        """Stand in for ``propagate`` of GCN, SAGE and GIN: one product with a sparse matrix."""
        source = x[0] if isinstance(x, tuple) else x
        if not is_edge_list(edge_index, size):
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
        if not is_edge_list(edge_index, size):
            weights = type(conv).edge_updater(conv, edge_index, size=size, **alpha.inputs)
            weights = weights if quantize is None else quantize(weights)
            plain: Tensor = type(conv).propagate(conv, edge_index, size=size, x=x, alpha=weights)
            return plain
        adjacency = self._adjacencies.get((edge_index,), conv.flow, num_nodes)
        out: Tensor = source.new_zeros(source.shape)
        limit = hub_limit = _edges_of_block(source[:1].numel())
        if isinstance(conv, GATv2Conv):  # its scores come from the features of each edge
            score = gatv2_score(conv, adjacency, alpha)
        else:
            score, limit = gat_score(conv, adjacency, alpha), BLOCK_EDGES
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
            rows, source = found.kept
            target = adjacency.target[adjacency.edges(found.part)]
            add_rows(out, target, rows[source].mul_(found.weights))
        return out


def _has_known_scores(conv: nn.Module) -> bool:
    """Whether a convolution computes its attention as PyG's GAT or GATv2."""
    return any(
        isinstance(conv, known) and type(conv).edge_update is known.edge_update
        for known in (GATConv, GATv2Conv)
    )


def _edges_of_block(num_values: int) -> int:
    """Edges whose features, that many values each, may exist at one time."""
    return max(1, min(BLOCK_EDGES, _BLOCK_VALUES // max(1, num_values)))


def _gin(conv: GINConv, x: Tensor, edge_index: Any, size: Any = None) -> Tensor:
    """Stand in for ``forward`` of GIN: the root term is added block by block."""
    if isinstance(x, tuple):
        x = x[0]
    out = conv.propagate(edge_index, x=(x, x), size=size)
    for nodes, block in blocks_of(x):
        out[nodes] += (1 + conv.eps) * block.to_dense()
    result: Tensor = conv.nn(out)
    return result
