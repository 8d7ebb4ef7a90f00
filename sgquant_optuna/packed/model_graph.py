"""Message passing of a packed model: the sums of the fake-quantized one, block by block.

Attention is computed, quantized and used for a few destination nodes at a time, so that ``[E, H]``
float32 never exists. Every sum runs in the order in which the fake-quantized model adds up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import AGNNConv, GATConv, GATv2Conv, GCNConv, GINConv, MessagePassing
from torch_geometric.utils import add_self_loops, remove_self_loops, softmax

from sgquant_optuna.fixed_graph import is_sparse_product
from sgquant_optuna.packed.packed_tensor import PackedTensor, blocks_of, row_blocks, rows_of
from sgquant_optuna.sparse_products import csr

Quantize = Callable[[Tensor], Tensor]
BLOCK_EDGES = 1 << 14
"""Edges whose attention exists at one time, where features of edges are not wide."""
_BLOCK_VALUES = 1 << 20
_MAX_ADJACENCIES = 8


class Adjacency:
    """Edges ordered by destination, then source.

    Args:
        edge_index:
            ``[2, E]``.
        flow:
            Of the convolution.
        num_nodes:
            Nodes N.
    """

    def __init__(self, edge_index: Tensor, flow: str, num_nodes: int) -> None:
        self.edge_index, self.flow = edge_index, flow
        self.source, self.target = edge_index if flow == "source_to_target" else edge_index.flip(0)
        self.order = (self.target * num_nodes + self.source).argsort(stable=True)
        counts = torch.bincount(self.target, minlength=num_nodes)
        self.counts = counts
        # int32 is what MKL computes with: int64 would be copied in each product.
        self.crow = F.pad(counts.cumsum(0), (1, 0)).int()
        self.col = self.source[self.order].int()

    def matrix(self, values: Tensor) -> Tensor:
        """Return the CSR matrix A of ``A @ x``, values in :attr:`order`."""
        num_nodes = len(self.crow) - 1
        return csr(self.crow, self.col, values, (num_nodes, num_nodes))


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
        self._adjacencies: list[Adjacency] = []
        self.fallback: list[str] = []
        for name, conv in list(model.named_modules()):
            if not isinstance(conv, MessagePassing):
                continue
            quantize = attention.get(name)
            if isinstance(conv, GATConv | GATv2Conv) and is_sparse_product(conv):
                conv.__dict__["edge_updater"] = _Attention
                conv.__dict__["propagate"] = partial(self._attend, conv, quantize)
            elif type(conv) is AGNNConv and str(conv.aggr) == "add":
                conv.__dict__["forward"] = partial(self._agnn, conv, quantize)
            elif name in attention:
                self.fallback.append(name)
            elif is_sparse_product(conv):
                conv.__dict__["propagate"] = partial(self._propagate, conv)
                if isinstance(conv, GCNConv):
                    conv.cached = conv.normalize  # a packed model knows one graph
                if type(conv) is GINConv:
                    conv.__dict__["forward"] = partial(_gin, conv)

    def _adjacency(self, conv: MessagePassing, edge_index: Tensor, num_nodes: int) -> Adjacency:
        for known in self._adjacencies:
            if known.flow == conv.flow and _same(known.edge_index, edge_index):
                return known
        if len(self._adjacencies) == _MAX_ADJACENCIES:
            self._adjacencies.pop(0)
        self._adjacencies.append(Adjacency(edge_index, conv.flow, num_nodes))
        return self._adjacencies[-1]

    def _propagate(
        self, conv: MessagePassing, edge_index: Any, size: Any = None, *, x: Any, **weights: Any
    ) -> Tensor:
        """Stand in for ``propagate`` of GCN, SAGE and GIN: one product with a sparse matrix."""
        source = x[0] if isinstance(x, tuple) else x
        if not _is_plain(edge_index, size):
            plain: Tensor = type(conv).propagate(conv, edge_index, size=size, x=x, **weights)
            return plain
        adjacency = self._adjacency(conv, edge_index, source.shape[0])
        weight = weights.get("edge_weight")
        values = torch.ones(len(adjacency.col)) if weight is None else weight[adjacency.order]
        if str(conv.aggr) == "mean":
            values = values / adjacency.counts.clamp(min=1).repeat_interleave(adjacency.counts)
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
        alpha: _Attention,
    ) -> Tensor:
        """Stand in for ``propagate`` of GAT and GATv2."""
        source = x[0] if isinstance(x, tuple) else x
        num_nodes, heads, _ = source.shape
        if not _is_plain(edge_index, size):
            weights = type(conv).edge_updater(conv, edge_index, size=size, **alpha.inputs)
            weights = weights if quantize is None else quantize(weights)
            plain: Tensor = type(conv).propagate(conv, edge_index, size=size, x=x, alpha=weights)
            return plain
        adjacency = self._adjacency(conv, edge_index, num_nodes)
        out = torch.empty_like(source)
        limit = BLOCK_EDGES
        if isinstance(conv, GATv2Conv):  # its scores come from the features of each edge
            limit = max(1, min(limit, _BLOCK_VALUES // source[:1].numel()))
        for start, stop in row_blocks(adjacency.crow, limit):
            low, high = int(adjacency.crow[start]), int(adjacency.crow[stop])
            ids = adjacency.order[low:high]
            by_edge = ids.argsort()  # the order in which softmax adds up
            edges = ids[by_edge]
            target = adjacency.target[edges]
            weights = conv.edge_update(
                **alpha.of_edges(edges, adjacency.source[edges], target, conv.flow),
                index=target - start,
                ptr=None,
                dim_size=stop - start,
            )
            weights = weights if quantize is None else quantize(weights)
            by_source = torch.empty_like(weights)
            by_source[by_edge] = weights
            crow = adjacency.crow[start : stop + 1] - low
            for head in range(heads):
                values = by_source[:, head].contiguous()
                part = csr(crow, adjacency.col[low:high], values, (stop - start, num_nodes))
                out[start:stop, head] = part @ source[:, head]
        return out

    def _agnn(
        self, conv: AGNNConv, quantize: Quantize | None, x: Tensor, edge_index: Any
    ) -> Tensor:
        """Stand in for ``forward`` of AGNN, whose scores are cosines of the packed features."""
        if not _is_plain(edge_index, None):
            dense = x.dense() if isinstance(x, PackedTensor) else x
            plain: Tensor = type(conv).forward(conv, dense, edge_index)
            return plain
        num_nodes, num_columns = x.shape
        if conv.add_self_loops:
            edge_index, _ = remove_self_loops(edge_index)
            edge_index, _ = add_self_loops(edge_index, num_nodes=num_nodes)
        adjacency = self._adjacency(conv, edge_index, num_nodes)
        out = torch.empty(num_nodes, num_columns)
        limit = max(1, min(BLOCK_EDGES, _BLOCK_VALUES // max(1, num_columns)))
        for start, stop in row_blocks(adjacency.crow, limit):
            low, high = int(adjacency.crow[start]), int(adjacency.crow[stop])
            edges = adjacency.order[low:high].sort().values  # the order in which softmax adds up
            ends = torch.cat([adjacency.source[edges], adjacency.target[edges]])
            nodes, place = ends.unique(return_inverse=True)
            rows = rows_of(x, nodes)
            unit = F.normalize(rows, p=2.0, dim=-1)
            source, target = place.view(2, -1)
            local = adjacency.target[edges] - start
            weights = conv.beta * (unit[target] * unit[source]).sum(dim=-1)
            weights = softmax(weights, local, None, stop - start)
            if quantize is not None:
                weights = quantize(weights[:, None])[:, 0]
            messages = rows[source] * weights.view(-1, 1)
            out[start:stop] = conv.aggregate(messages, local, None, stop - start)
        return out


class _Attention:
    """What attention is computed from, once it is known for which edges."""

    def __init__(self, edge_index: Any, size: Any = None, **inputs: Any) -> None:
        self.inputs = inputs

    def of_edges(self, edges: Tensor, source: Tensor, target: Tensor, flow: str) -> dict[str, Any]:
        """Return the arguments of ``edge_update`` for some edges."""
        gathered: dict[str, Any] = {}
        for name, value in self.inputs.items():
            if isinstance(value, tuple):
                of_source, of_target = value if flow == "source_to_target" else value[::-1]
                gathered[f"{name}_j"] = of_source[source]
                gathered[f"{name}_i"] = None if of_target is None else of_target[target]
            else:
                gathered[name] = None if value is None else value[edges]
        return gathered


def _gin(conv: GINConv, x: Tensor, edge_index: Any, size: Any = None) -> Tensor:
    """Stand in for ``forward`` of GIN: the root term is added block by block."""
    if isinstance(x, tuple):
        x = x[0]
    out = conv.propagate(edge_index, x=(x, x), size=size)
    for nodes, block in blocks_of(x):
        out[nodes] += (1 + conv.eps) * block.to_dense()
    result: Tensor = conv.nn(out)
    return result


def _is_plain(edge_index: Any, size: Any) -> bool:
    return (
        isinstance(edge_index, Tensor)
        and edge_index.layout == torch.strided
        and (size is None or size == (None, None))
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))
