"""One graph that a model is trained on for many epochs: what does not change is computed once.

Sparse features stay sparse, the normalisation of GCN is kept, and sum and mean aggregations run as
one sparse product instead of gather and scatter. All of it is found again by the values of edges
and weights. What these products are not made for goes PyG's own way: weights that are learned,
edges that change in every pass, other types than float32, autocast. Models are not rewritten, and
are as they were after the ``with`` block.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, GINConv, MessagePassing, SAGEConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from sgquant_optuna.graph.adjacency_cache import AdjacencyCache, FirstAdjacencies
from sgquant_optuna.graph.columns import check_type
from sgquant_optuna.graph.instance_methods import has_own_method, replace_method
from sgquant_optuna.graph.node_types import Graph, node_parts
from sgquant_optuna.graph.sparse_features import as_sparse_features
from sgquant_optuna.graph.sparse_products import AttentionMatmul, CsrPattern, SparseMatmul

_SPARSE_PRODUCTS = (GCNConv, SAGEConv, GINConv, GATConv, GATv2Conv)
"""Convolutions whose messages are (weighted) neighbours, so that aggregation is ``A @ x``."""

Derived = TypeVar("Derived")

_Norm = tuple[Tensor, Tensor]
"""Edges with self-loops, ``[2, E]``, and their weights, ``[E]``."""

ONE_AT_A_TIME = threading.RLock()
"""Held while a model runs on a fixed graph, or is trained.

Convolutions carry the graph's methods then, and dropout draws from the one random state of the
process, so that two threads would change each other's results.
"""


class FixedGraph:
    """A graph with everything that training computes from it alone.

    Args:
        data:
            Graph; it is not changed.

    Raises:
        GraphError:
            If it is not one graph.
    """

    def __init__(self, data: Graph) -> None:
        check_type(data, hetero=True)
        self.data = copy.copy(data)
        for part in node_parts(self.data).values():
            if part.get("x") is not None:
                part.x = as_sparse_features(part.x)
        self._norms = AdjacencyCache(_normalised)
        self._adjacencies = AdjacencyCache(_adjacency)
        self._passed: set[Callable[[Graph], None]] = set()
        self._derived: dict[Hashable, Any] = {}

    def check(self, check: Callable[[Graph], None]) -> None:
        """Check the graph once, for all trainings on it.

        Args:
            check:
                Function that raises if the graph lacks something, as :meth:`.Task.check` does.

        Raises:
            GraphError:
                If it does.
        """
        if check not in self._passed:
            check(self.data)
            self._passed.add(check)

    def derived(self, make: Callable[..., Derived], *settings: Hashable) -> Derived:
        """Return what is computed from the graph once, for all trainings on it.

        Args:
            make:
                Function of the graph and the settings.
            settings:
                Plain values that the result depends on too.
        """
        key = (make, *settings)
        if key not in self._derived:
            self._derived[key] = make(self, *settings)
        found: Derived = self._derived[key]
        return found

    @contextmanager
    def speed_up(self, model: nn.Module) -> Iterator[Graph]:
        """Let the convolutions of ``model`` use this graph's cached matrices.

        One thread of the process at a time is within such a block; the others wait.

        Yields:
            Graph to call the model with.
        """
        with speed_up(model) as use:
            yield use(self)

    def lookups(self) -> _Lookups:
        """Return the cached matrices for a block that speeds up a model."""
        return _Lookups(FirstAdjacencies(self._norms), FirstAdjacencies(self._adjacencies))


@contextmanager
def speed_up(model: nn.Module) -> Iterator[Callable[[FixedGraph], Graph]]:
    """Let the convolutions of ``model`` use the cached matrices of one graph after another.

    One thread of the process at a time is within such a block; the others wait.

    Yields:
        Function that takes the graph that is used from now on, and returns what the model is to be
        called with.
    """
    with ONE_AT_A_TIME, ExitStack() as undo:
        lookups: dict[FixedGraph, _Lookups] = {}
        current = _Current()
        for conv in model.modules():
            if isinstance(conv, GCNConv) and _normalises_each_time(conv):
                replace_method(conv, "forward", _GCNForward(current), undo)
            if isinstance(conv, MessagePassing) and is_sparse_product(conv):
                replace_method(conv, "propagate", _Propagate(current), undo)

        def use(graph: FixedGraph) -> Graph:
            if graph not in lookups:
                lookups[graph] = graph.lookups()
            current.lookups = lookups[graph]
            return graph.data

        yield use


class _Lookups(NamedTuple):
    """The cached matrices of one graph."""

    norms: FirstAdjacencies[_Norm]
    adjacencies: FirstAdjacencies[_Adjacency | None]


class _Current:
    """The graph that a model is called with now."""

    lookups: _Lookups


class _GCNForward:
    """Stands in for ``forward`` of GCN, and computes each normalisation once."""

    def __init__(self, current: _Current) -> None:
        self._current = current

    def __call__(
        self, conv: GCNConv, x: Any, edge_index: Any, edge_weight: Tensor | None = None
    ) -> Tensor:
        known = conv._cached_edge_index
        if known is None:
            with torch._C.DisableTorchFunction():  # a recorder of dropout slows down every look
                known = self._find(conv, x, edge_index, edge_weight)
        before, conv._cached_edge_index = conv._cached_edge_index, known
        try:
            out: Tensor = GCNConv.forward(conv, x, edge_index, edge_weight)
        finally:
            conv._cached_edge_index = before
        return out

    def _find(
        self, conv: GCNConv, x: Any, edge_index: Any, edge_weight: Tensor | None
    ) -> _Norm | None:
        if not (
            is_edge_list(edge_index, None)
            and _is_float32(x, 2, edge_index.device)
            and _is_fixed_weight(edge_weight, edge_index)
        ):
            return None
        return self._current.lookups.norms.get(
            (edge_index, edge_weight),
            *(conv.improved, conv.add_self_loops, conv.flow, x.shape[0], x.dtype),
        )


class _Propagate:
    """Stands in for PyG's ``propagate``, with GCN's ``edge_weight`` or GAT's ``alpha``."""

    def __init__(self, current: _Current) -> None:
        self._current = current

    def __call__(
        self, conv: MessagePassing, edge_index: Any, size: Any = None, **inputs: Any
    ) -> Tensor:
        adjacency = None
        if inputs.keys() <= {"x", "edge_weight", "alpha"}:
            with torch._C.DisableTorchFunction():
                adjacency = self._find(conv, edge_index, size, **inputs)
        out: Tensor
        if adjacency is None:
            out = type(conv).propagate(conv, edge_index, size=size, **inputs)
            return out
        x, alpha = inputs["x"], inputs.get("alpha")
        source = x[0] if isinstance(x, tuple) else x
        if alpha is not None:
            out = AttentionMatmul.apply(adjacency.pattern, alpha[adjacency.order], source)  # type: ignore[no-untyped-call]
        else:
            out = SparseMatmul.apply(adjacency.pattern, adjacency.values, source)  # type: ignore[no-untyped-call]
        return out

    def _find(
        self,
        conv: MessagePassing,
        edge_index: Any,
        size: Any,
        *,
        x: Any,
        edge_weight: Tensor | None = None,
        alpha: Tensor | None = None,
    ) -> _Adjacency | None:
        """Return the matrix of a call, or ``None`` if the product is not made for it."""
        source, target = x if isinstance(x, tuple) else (x, x)
        if not (
            is_edge_list(edge_index, size)
            and _is_float32(source, 2 if alpha is None else 3, edge_index.device)
            and (target is None or len(target) == len(source))
            and _is_fixed_weight(edge_weight, edge_index)
            and (alpha is None or _is_float32(alpha, 2, edge_index.device))
        ):
            return None
        return self._current.lookups.adjacencies.get(
            (edge_index, edge_weight), conv.flow, str(conv.aggr), source.shape[0]
        )


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


def _adjacency(
    edge_index: Tensor, weight: Tensor | None, flow: str, aggr: str, num_nodes: int
) -> _Adjacency | None:
    """Make a matrix, or ``None`` of edges that PyG is to refuse in its own words."""
    if edge_index.numel():
        low, high = edge_index.aminmax()
        if int(low) < 0 or int(high) >= num_nodes:
            return None
    with torch.no_grad():
        return _Adjacency(edge_index, weight, flow, aggr, num_nodes)


def _normalised(
    edge_index: Tensor,
    weight: Tensor | None,
    improved: bool,
    add_self_loops: bool,
    flow: str,
    num_nodes: int,
    dtype: torch.dtype,
) -> _Norm:
    with torch.no_grad():
        edges, weights = gcn_norm(
            edge_index, weight, num_nodes, improved, add_self_loops, flow, dtype
        )
    return edges, weights


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
    """Whether edges are a plain tensor ``[2, E]`` int64 within one set of nodes."""
    return (
        type(edge_index) in (Tensor, nn.Parameter)
        and isinstance(edge_index, Tensor)
        and edge_index.layout == torch.strided
        and edge_index.dtype == torch.long
        and edge_index.dim() == 2
        and edge_index.shape[0] == 2
        and (size is None or size == (None, None))
    )


def is_sparse_product(conv: MessagePassing) -> bool:
    """Whether the messages of ``conv`` are (weighted) neighbours, added up or averaged."""
    base = next((known for known in _SPARSE_PRODUCTS if isinstance(conv, known)), None)
    if base is None:
        return False
    attends = base in (GATConv, GATv2Conv)
    return (
        all(
            getattr(type(conv), name) is getattr(base, name) and not has_own_method(conv, name)
            for name in ("message", "aggregate", "update", "message_and_aggregate")
        )
        and str(conv.aggr) in (("add", "sum") if attends else ("add", "sum", "mean"))
        and conv.node_dim == (0 if attends else -2)
        and (not attends or torch.backends.mkl.is_available())
        and _has_propagate_of_pyg(conv)
        and conv.decomposed_layers == 1
        and not conv.explain
        and not any(hooks for name, hooks in vars(conv).items() if _is_message_hooks(name))
    )


def _normalises_each_time(conv: GCNConv) -> bool:
    """Whether a GCN normalises in each call, where the user did not tell it to cache."""
    return (
        conv.normalize
        and not conv.cached
        and conv.node_dim == -2
        and type(conv).forward is GCNConv.forward
        and not has_own_method(conv, "forward")
    )


def _has_propagate_of_pyg(conv: MessagePassing) -> bool:
    """Whether ``propagate`` is PyG's own: the general one, or what PyG generates for a class."""
    owner = next(parent for parent in type(conv).__mro__ if "propagate" in vars(parent))
    generated = f"{owner.__module__}_{owner.__name__}_propagate"
    return not has_own_method(conv, "propagate") and (
        owner is MessagePassing or vars(owner)["propagate"].__module__.startswith(generated)
    )


def _is_message_hooks(name: str) -> bool:
    return name.endswith("_hooks") and name.startswith(
        ("_propagate", "_message", "_aggregate", "_message_and_aggregate")
    )


def _is_float32(x: object, dim: int, device: torch.device) -> bool:
    return (
        isinstance(x, Tensor)
        and x.dtype == torch.float32
        and x.dim() == dim
        and x.layout == torch.strided
        and x.device == device
        and not torch.is_autocast_enabled(device.type)
    )


def _is_fixed_weight(weight: Tensor | None, edge_index: Tensor) -> bool:
    """Whether weights are one number for each edge, and none that is learned."""
    return weight is None or (
        type(weight) in (Tensor, nn.Parameter)
        and _is_float32(weight, 1, edge_index.device)
        and len(weight) == edge_index.shape[1]
        and not weight.requires_grad
    )
