"""One graph that a model is trained on for many epochs: what stays the same is computed once.

Sparse features stay sparse, the normalisation of GCN is cached, and sum and mean aggregations
run as one sparse product instead of gather and scatter. Models are not rewritten, and are as
they were after the ``with`` block.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, GINConv, MessagePassing, SAGEConv

from sgquant_optuna.graph.sparse_features import as_sparse_features
from sgquant_optuna.graph.sparse_products import AttentionMatmul, CsrPattern, SparseMatmul

_SPARSE_PRODUCTS = (GCNConv, SAGEConv, GINConv, GATConv, GATv2Conv)
"""Convolutions whose messages are (weighted) neighbours, so that aggregation is ``A @ x``."""

_MAX_ADJACENCIES = 8
"""A model that draws new edges in each forward pass must not fill the memory with them."""


class FixedGraph:
    """A graph with everything that training computes from it alone.

    Args:
        data:
            The graph; it is not changed.
    """

    def __init__(self, data: Data) -> None:
        self.data = copy.copy(data)
        if data.x is not None:
            self.data.x = as_sparse_features(data.x)
        self._adjacencies: list[_Adjacency] = []

    @contextmanager
    def speed_up(self, model: nn.Module) -> Iterator[Data]:
        """Let the convolutions of ``model`` use this graph's cached matrices.

        Yields:
            The graph to call the model with. Within the block, the model must not be called
            with another.
        """
        with ExitStack() as undo:
            for conv in model.modules():
                if isinstance(conv, GCNConv) and conv.normalize and not conv.cached:
                    undo.callback(_forget_norm, conv)
                    conv.cached = True
                if isinstance(conv, MessagePassing) and is_sparse_product(conv):
                    undo.callback(conv.__dict__.pop, "propagate")
                    conv.__dict__["propagate"] = partial(self._propagate, conv)
            yield self.data

    def _propagate(
        self,
        conv: MessagePassing,
        edge_index: Any,
        size: Any = None,
        *,
        x: Any,
        **weights: Tensor | None,
    ) -> Tensor:
        """Stand in for PyG's ``propagate``, with GCN's ``edge_weight`` or GAT's ``alpha``."""
        source = x[0] if isinstance(x, tuple) else x
        if (
            not isinstance(edge_index, Tensor)
            or edge_index.layout != torch.strided
            or (size is not None and size != (None, None))
        ):
            plain: Tensor = type(conv).propagate(conv, edge_index, size=size, x=x, **weights)
            return plain
        alpha = weights.get("alpha")
        weight = weights.get("edge_weight")
        adjacency = self._adjacency(conv, edge_index, weight, source.shape[0])
        out: Tensor
        if alpha is not None:
            out = AttentionMatmul.apply(adjacency.pattern, alpha[adjacency.order], source)  # type: ignore[no-untyped-call]
        else:
            out = SparseMatmul.apply(adjacency.pattern, adjacency.values, source)  # type: ignore[no-untyped-call]
        return out

    def _adjacency(
        self, conv: MessagePassing, edge_index: Tensor, weight: Tensor | None, num_nodes: int
    ) -> _Adjacency:
        key = (conv.flow, str(conv.aggr))
        for known in self._adjacencies:
            if known.key == key and known.holds(edge_index, weight):
                return known
        if len(self._adjacencies) == _MAX_ADJACENCIES:
            self._adjacencies.pop(0)
        self._adjacencies.append(_Adjacency(key, edge_index, weight, num_nodes))
        return self._adjacencies[-1]


class _Adjacency:
    """The matrix ``A`` with ``A @ x`` the aggregation over ``edge_index``."""

    def __init__(
        self, key: tuple[str, str], edge_index: Tensor, weight: Tensor | None, num_nodes: int
    ) -> None:
        self.key, self._edge_index, self._weight = key, edge_index, weight
        flow, aggr = key
        source, target = edge_index if flow == "source_to_target" else edge_index.flip(0)
        order = (target * num_nodes + source).argsort(stable=True)
        self.order = order
        counts = torch.bincount(target, minlength=num_nodes)
        crow = F.pad(counts.cumsum(0), (1, 0))
        self.pattern = CsrPattern(crow, source[order], (num_nodes, num_nodes))
        values = torch.ones(len(order), device=order.device) if weight is None else weight[order]
        if aggr == "mean":
            values = values / counts.clamp(min=1).repeat_interleave(counts)
        self.values = values

    def holds(self, edge_index: Tensor, weight: Tensor | None) -> bool:
        # Models may derive equal tensors anew in each forward pass: comparing is far cheaper
        # than sorting, and the same object needs no comparing.
        return _same(self._edge_index, edge_index) and _same(self._weight, weight)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is other or one is None or other is None:
        return one is other
    return one.shape == other.shape and one.device == other.device and torch.equal(one, other)


def is_sparse_product(conv: MessagePassing) -> bool:
    """Whether the messages of ``conv`` are (weighted) neighbours, added up or averaged."""
    base = next((known for known in _SPARSE_PRODUCTS if isinstance(conv, known)), None)
    return (
        base is not None
        and all(
            getattr(type(conv), name) is getattr(base, name)
            for name in ("message", "aggregate", "update", "message_and_aggregate")
        )
        and str(conv.aggr) in ("add", "sum", "mean")
        and (not isinstance(conv, GATConv | GATv2Conv) or torch.backends.mkl.is_available())
        and "propagate" not in conv.__dict__
        and conv.decomposed_layers == 1
        and not conv.explain
        and not any(hooks for name, hooks in vars(conv).items() if _is_message_hooks(name))
    )


def _is_message_hooks(name: str) -> bool:
    return name.endswith("_hooks") and name.startswith(
        ("_propagate", "_message", "_aggregate", "_message_and_aggregate")
    )


def _forget_norm(conv: GCNConv) -> None:
    conv.cached = False
    conv._cached_edge_index = conv._cached_adj_t = None
