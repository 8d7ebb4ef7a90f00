"""One graph that a model is trained on for many epochs: what does not change is computed once.

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

from sgquant_optuna.graph.adjacency_cache import AdjacencyCache
from sgquant_optuna.graph.sparse_features import as_sparse_features
from sgquant_optuna.graph.sparse_products import AttentionMatmul, CsrPattern, SparseMatmul

_SPARSE_PRODUCTS = (GCNConv, SAGEConv, GINConv, GATConv, GATv2Conv)
"""Convolutions whose messages are (weighted) neighbours, so that aggregation is ``A @ x``."""


class FixedGraph:
    """A graph with everything that training computes from it alone.

    Args:
        data:
            Graph; it is not changed.
    """

    def __init__(self, data: Data) -> None:
        self.data = copy.copy(data)
        if data.x is not None:
            self.data.x = as_sparse_features(data.x)
        self._adjacencies = AdjacencyCache(_Adjacency)

    @contextmanager
    def speed_up(self, model: nn.Module) -> Iterator[Data]:
        """Let the convolutions of ``model`` use this graph's cached matrices.

        Yields:
            Graph to call the model with. Within the block, the model must not be called with
            another.
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
        if not is_edge_list(edge_index, size):
            plain: Tensor = type(conv).propagate(conv, edge_index, size=size, x=x, **weights)
            return plain
        alpha = weights.get("alpha")
        adjacency = self._adjacencies.get(
            (edge_index, weights.get("edge_weight")), conv.flow, str(conv.aggr), source.shape[0]
        )
        out: Tensor
        if alpha is not None:
            out = AttentionMatmul.apply(adjacency.pattern, alpha[adjacency.order], source)  # type: ignore[no-untyped-call]
        else:
            out = SparseMatmul.apply(adjacency.pattern, adjacency.values, source)  # type: ignore[no-untyped-call]
        return out


class _Adjacency:
    """The matrix ``A`` with ``A @ x`` the aggregation over ``edge_index``."""

    def __init__(
        self, edge_index: Tensor, weight: Tensor | None, flow: str, aggr: str, num_nodes: int
    ) -> None:
        source, target = edge_index if flow == "source_to_target" else edge_index.flip(0)
        self.order = (target * num_nodes + source).argsort(stable=True)
        counts = torch.bincount(target, minlength=num_nodes)
        crow = F.pad(counts.cumsum(0), (1, 0))
        self.pattern = CsrPattern(crow, source[self.order], (num_nodes, num_nodes))
        self.values = edge_values(weight, self.order, counts, aggr)


def edge_values(weight: Tensor | None, order: Tensor, counts: Tensor, aggr: str) -> Tensor:
    """Return the entries of the matrix ``A`` with ``A @ x`` the aggregation.

    Args:
        weight:
            Weight of each edge, ``[E]``, or ``None`` for 1.
        order:
            Edges by destination, ``[E]``.
        counts:
            Number of edges of each destination, ``[N]``.
        aggr:
            Aggregation of the convolution: ``"add"``, ``"sum"`` or ``"mean"``.

    Returns:
        Entries, ``[E]`` float32, in ``order``.
    """
    if weight is None:
        values = torch.ones(len(order), device=order.device)
    else:
        values = weight.index_select(0, order)
    if aggr == "mean":
        values = values / counts.clamp(min=1).repeat_interleave(counts)
    return values


def is_edge_list(edge_index: object, size: object) -> bool:
    """Whether edges are a plain tensor ``[2, E]`` within one set of nodes."""
    return (
        isinstance(edge_index, Tensor)
        and edge_index.layout == torch.strided
        and (size is None or size == (None, None))
    )


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
