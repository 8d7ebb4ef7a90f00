"""Some graphs of a union of graphs, by arithmetic on indices: no graph is ever made alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.data import Data

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.sparse_features import SparseFeatures
from sgquant_optuna.graph.sparse_products import CsrPattern
from sgquant_optuna.graph.tensor_base import WrapperTensor

_SETTINGS = ("ptr", "num_nodes")


class UnionSlices:
    """A union of graphs that is cut into unions of some of them.

    Args:
        data:
            Union with ``batch`` (``[N]`` int64, the graph of each node, in order from 0) and no
            edge between two graphs; G is the number of graphs, E that of edges.
        graph_columns:
            Names of columns with an entry for each graph. Other columns have one for each node,
            edge or graph, told by their length in this order.

    Raises:
        GraphError:
            If a column has another length.
    """

    def __init__(self, data: Data, graph_columns: tuple[str, ...]) -> None:
        batch: Tensor = data.batch
        self._data = data
        self._nodes = _Ranges(batch.bincount())
        self._edges: _Ranges | None = None
        if "edge_index" in data:
            graph_of_edge = batch[data.edge_index[0]]
            counts = graph_of_edge.bincount(minlength=len(self._nodes.counts))
            in_order = bool((graph_of_edge.diff() >= 0).all())
            order = None if in_order else graph_of_edge.argsort(stable=True)
            self._edges = _Ranges(counts, order)
        self._kinds = {name: self._kind(name, graph_columns) for name in data.keys()}

    def _kind(self, name: str, graph_columns: tuple[str, ...]) -> str:
        value = self._data[name]
        if name in _SETTINGS or not isinstance(value, Tensor):
            return "setting"
        if name == "edge_index" or value.layout != torch.strided:
            return name if name == "edge_index" else "matrix"
        num_edges = -1 if self._edges is None else self._edges.total
        num_graphs = len(self._nodes.counts)
        lengths = {"node": self._nodes.total, "edge": num_edges, "graph": num_graphs}
        if name in graph_columns:
            return "graph"
        if name.startswith("edge_") and len(value) == num_edges:
            return "edge"
        length = len(value) if value.dim() else None
        kind = next((kind for kind, wanted in lengths.items() if length == wanted), None)
        if kind is None:
            raise GraphError(
                f"column {name}: expected a row for each of {lengths['node']} nodes, "
                f"{max(num_edges, 0)} edges or {num_graphs} graphs, got {list(value.shape)}; "
                f"delete it, or give the task batch_size=None"
            )
        return kind

    def take(self, graphs: Tensor) -> Data:
        """Return the union of some graphs, with ``batch`` counted anew.

        Args:
            graphs:
                Numbers of the graphs, ``[n]`` int64, each at most once.
        """
        nodes, counts = self._nodes.take(graphs), self._nodes.counts[graphs]
        # A node moves from the start of its graph in the whole to that in the part.
        shift = _starts(counts) - self._nodes.starts[graphs]
        edges = None if self._edges is None else self._edges.take(graphs)
        out = Data()
        for name, kind in self._kinds.items():
            value = self._data[name]
            match kind:
                case "node":
                    out[name] = _rows(value, nodes)
                case "edge":
                    out[name] = value[edges]
                case "graph":
                    out[name] = value[graphs]
                case "edge_index":
                    assert self._edges is not None
                    moved = shift.repeat_interleave(self._edges.counts[graphs])
                    out[name] = value[:, edges] + moved
                case "matrix":
                    out[name] = _block(value, nodes)
                case _ if name == "num_nodes":
                    out.num_nodes = len(nodes)
                case _ if name == "ptr":
                    out.ptr = F.pad(counts.cumsum(0), (1, 0))
                case _:
                    out[name] = value
        numbers = torch.arange(len(graphs), device=graphs.device)
        out.batch = numbers.repeat_interleave(counts)
        return out


class _Ranges:
    """Entries of each graph, one range after another.

    Args:
        counts:
            Number of entries of each graph, ``[G]``.
        order:
            Entries by graph; ``None`` if they are in this order already.
    """

    def __init__(self, counts: Tensor, order: Tensor | None = None) -> None:
        self.counts, self._order = counts, order
        self.starts, self.total = _starts(counts), int(counts.sum())

    def take(self, chosen: Tensor) -> Tensor:
        """Return the entries of some graphs."""
        counts = self.counts[chosen]
        offset = (self.starts[chosen] - _starts(counts)).repeat_interleave(counts)
        entries = offset + torch.arange(len(offset), device=offset.device)
        return entries if self._order is None else self._order[entries]


def _starts(counts: Tensor) -> Tensor:
    return counts.cumsum(0) - counts


def _rows(value: Tensor, rows: Tensor) -> Tensor:
    if not isinstance(value, SparseFeatures):
        return (value.dense() if isinstance(value, WrapperTensor) else value)[rows]
    pattern = value.pattern
    counts = pattern.crow.diff()
    kept = _Ranges(counts).take(rows)
    crow = F.pad(counts[rows].cumsum(0), (1, 0))
    shape = (len(rows), pattern.shape[1])
    return SparseFeatures(CsrPattern(crow, pattern.col[kept], shape), value.non_zeros[kept])


def _block(matrix: Tensor, nodes: Tensor) -> Tensor:
    """Return rows and columns of a sparse matrix ``[N, N]``, in its layout."""
    chosen: Tensor = matrix.to_sparse_coo()
    chosen = chosen.index_select(0, nodes).index_select(1, nodes).coalesce()
    if matrix.layout == torch.sparse_csr:
        chosen = chosen.to_sparse_csr()
    elif matrix.layout == torch.sparse_csc:
        chosen = chosen.to_sparse_csc()
    return chosen
