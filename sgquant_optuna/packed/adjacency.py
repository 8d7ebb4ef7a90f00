"""Edges by destination, and runs of destinations with a bounded number of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from sgquant_optuna.graph.sparse_products import csr


class Adjacency:
    """Edges in two orders: by destination as they came, and by destination and source.

    PyG's softmax adds up in the first order, a product with a CSR matrix in the second.

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
        ends = edge_index if flow == "source_to_target" else edge_index.flip(0)
        self.source: Tensor = ends[0]
        self.target: Tensor = ends[1]
        by_target = self.target.argsort(stable=True)
        pairs = (self.target * num_nodes + self.source)[by_target]
        # int32 is what MKL computes with: int64 would be copied in each product.
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
        """Return some edges by destination, as they came, ``[e]`` int64."""
        return self._by_target[part].long()

    def edges_by_source(self, part: slice) -> Tensor:
        """Return some edges by destination and source, ``[e]`` int64."""
        return self._by_target.index_select(0, self._to_source[part]).long()

    def to_source(self, part: slice) -> Tensor:
        """Return the places in :meth:`edges` of :meth:`edges_by_source`, for whole rows."""
        places: Tensor = self._to_source[part].long() - part.start
        return places

    def matrix(self, values: Tensor) -> Tensor:
        """Return the CSR matrix A of ``A @ x``, values in :attr:`order`."""
        num_nodes = len(self.crow) - 1
        return csr(self.crow, self.col, values, (num_nodes, num_nodes))

    def rows_of_matrix(self, rows: slice, part: slice, values: Tensor) -> Tensor:
        """Return some whole rows of A, of which ``part`` are the entries."""
        crow = self.crow[rows.start : rows.stop + 1] - part.start
        shape = (rows.stop - rows.start, len(self.crow) - 1)
        return csr(crow, self.col[part], values, shape)


def row_blocks(
    crow: Tensor, limit: int, most_rows: int | None = None
) -> Iterator[tuple[slice, slice]]:
    """Cut a CSR matrix into runs of whole rows with at most ``limit`` entries.

    A row that alone has more, a hub, is a run of its own: :func:`parts_of` cuts it further.

    Yields:
        Rows, and their entries.
    """
    row, last = 0, len(crow) - 1
    while row < last:
        low = int(crow[row])
        stop = int(torch.searchsorted(crow, low + limit, right=True)) - 1
        stop = min(max(stop, row + 1), last, row + (most_rows or last))
        yield slice(row, stop), slice(low, int(crow[stop]))
        row = stop


def parts_of(entries: slice, limit: int) -> list[slice]:
    """Cut entries into runs of at most ``limit``."""
    starts = range(entries.start, entries.stop, limit)
    return [slice(start, min(start + limit, entries.stop)) for start in starts]


def add_rows(out: Tensor, index: Tensor, rows: Tensor) -> None:
    """Add rows ``[n, F]`` to those of ``out`` that ``index`` names, one after the other.

    So a sum that is cut is the same number as one that is not, and as that of the CSR product.
    """
    out.scatter_add_(0, index[:, None].expand_as(rows), rows)
