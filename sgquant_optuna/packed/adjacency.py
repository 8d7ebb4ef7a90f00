"""Edges in the orders in which PyG's softmax and a CSR product add them up."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sgquant_optuna.graph.sparse_products import csr


class Adjacency:
    """Edges in two orders: by destination in their given order, and by destination and source.

    PyG's softmax adds up in the first order, a product with a CSR matrix in the second.

    Args:
        edge_index:
            Edges, ``[2, E]``.
        flow:
            Direction of the messages, as in PyG: ``"source_to_target"`` or the reverse.
        num_nodes:
            Number of nodes N.
    """

    def __init__(self, edge_index: Tensor, flow: str, num_nodes: int) -> None:
        ends = edge_index if flow == "source_to_target" else edge_index.flip(0)
        self.source: Tensor = ends[0]
        self.target: Tensor = ends[1]
        by_target = self.target.argsort(stable=True)
        pairs = (self.target * num_nodes + self.source)[by_target]
        # MKL computes with int32: each product would copy int64.
        self._by_target = by_target.int()
        self._to_source = pairs.argsort(stable=True).int()
        self.counts: Tensor = torch.bincount(self.target, minlength=num_nodes)
        self.crow = F.pad(self.counts.cumsum(0), (1, 0)).int()
        self.col = self.source.index_select(0, self.order).int()

    @property
    def order(self) -> Tensor:
        """Edges by destination and source, ``[E]`` int32."""
        return self._by_target.index_select(0, self._to_source)

    def edges(self, part: slice) -> Tensor:
        """Return some edges by destination, in their given order, ``[e]`` int64."""
        return self._by_target[part].long()

    def edges_by_source(self, part: slice) -> Tensor:
        """Return some edges by destination and source, ``[e]`` int64."""
        return self._by_target.index_select(0, self._to_source[part]).long()

    def to_source(self, part: slice) -> Tensor:
        """Return the place in :meth:`edges` of each of :meth:`edges_by_source`, for whole rows."""
        places: Tensor = self._to_source[part].long() - part.start
        return places

    def matrix(self, values: Tensor) -> Tensor:
        """Return the CSR matrix A of ``A @ x``, values in :attr:`order`."""
        num_nodes = len(self.crow) - 1
        return csr(self.crow, self.col, values, (num_nodes, num_nodes))

    def rows_of_matrix(self, rows: slice, part: slice, values: Tensor) -> Tensor:
        """Return some whole rows of A, whose entries are ``part``."""
        crow = self.crow[rows.start : rows.stop + 1] - part.start
        shape = (rows.stop - rows.start, len(self.crow) - 1)
        return csr(crow, self.col[part], values, shape)


def add_rows(out: Tensor, index: Tensor, rows: Tensor) -> None:
    """Add rows ``[n, F]`` to the rows ``index`` of ``out``, one after the other.

    A sum in parts is then the same number as a whole one, and as that of the CSR product.
    """
    out.scatter_add_(0, index[:, None].expand_as(rows), rows)
