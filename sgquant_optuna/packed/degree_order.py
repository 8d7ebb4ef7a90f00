"""Degrees of nodes counted from a file of edges, and rows in falling order of degree.

Memory is bounded at any number of nodes and edges: degrees are counted for some nodes at a time,
and lie in a file. Of all nodes together, only the number of nodes of each degree is held: E edges
have at most ``sqrt(2 E)`` different degrees.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.packed.array_files import ArrayFile, open_array

_NODES = 1 << 24
"""Nodes whose degrees are counted at once: each pass over the edges holds 64 MiB of them."""
_EDGES = 1 << 20
"""Edges that are read at once."""
_ROWS = 1 << 20
"""Nodes whose places are computed at once."""


class EdgeList:
    """Edges in blocks, of a file or of a tensor.

    Args:
        edges:
            File ``.npy`` or ``.safetensors`` of ``edge_index``, or the tensor: ``[2, E]``
            integers.

    Raises:
        GraphError:
            If it holds anything else.
    """

    def __init__(self, edges: str | Path | Tensor) -> None:
        self._file: ArrayFile | None = None
        if isinstance(edges, Tensor):
            self.name, shape, kind = "edge_index", tuple(edges.shape), str(edges.dtype)
            is_integer = not (edges.is_floating_point() or edges.is_complex())
            self._tensor = edges.cpu()
        else:
            self._file = open_array(edges, usual="edge_index", like="[2, E]")
            self.name, shape = self._file.path, self._file.shape
            kind, is_integer = self._file.type_name, self._file.dtype.kind in "iu"
            is_integer &= kind != "BF16"
        if len(shape) != 2 or shape[0] != 2 or not is_integer:
            self.close()
            raise GraphError(f"{self.name}: expected integers [2, E], got {kind} {list(shape)}")
        self.num_edges = int(shape[1])

    def stamp(self) -> list[Any]:
        """Return what tells these edges from others."""
        if self._file is not None:
            return self._file.stamp()
        return [self.num_edges, *(int(self._tensor.sum(1)[side]) for side in (0, 1))]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def blocks(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Read the edges block by block: the first of the block, and ``[n, 2]`` nodes."""
        for start in range(0, self.num_edges, _EDGES):
            stop = min(start + _EDGES, self.num_edges)
            if self._file is None:
                block = self._tensor[:, start:stop].t().numpy()
            else:
                block = self._file.transposed().raw(start, stop)
            yield start, block.astype(np.int64, copy=False)


@dataclass(frozen=True, eq=False)
class DegreeCounts:
    """Number of nodes of each degree.

    Args:
        degrees:
            Degrees that nodes have, rising, ``[D]`` int64.
        nodes:
            Number of nodes of each, ``[D]`` int64.
    """

    degrees: NDArray[np.int64]
    nodes: NDArray[np.int64]

    def quantile_edges(self, num_buckets: int) -> tuple[int, ...]:
        """Choose degree edges as :func:`.quantile_degree_edges` does: buckets of equal size.

        Raises:
            GraphError:
                If the nodes have too few degrees for so many buckets.
        """
        num_nodes = int(self.nodes.sum())
        ranks = [num_nodes * part // num_buckets for part in range(1, num_buckets)]
        at = np.searchsorted(np.cumsum(self.nodes), ranks, side="right")
        lowest = max(int(self.degrees[0]), 0)
        edges = sorted({int(self.degrees[place]) for place in at} - {lowest})
        if len(edges) != num_buckets - 1:
            raise GraphError(
                f"degrees: expected {num_buckets} buckets of about equal size for {num_buckets} "
                f"bit widths, got {len(edges) + 1}, as many nodes have one degree; give the "
                f"lowest degree of each bucket but the first (--degree-edges), or fewer widths"
            )
        return tuple(edges)

    def bucket_rows(self, degree_edges: tuple[int, ...]) -> tuple[int, ...]:
        """Return the number of nodes of each bucket."""
        bucket = np.searchsorted(np.array(degree_edges), self.degrees, side="right")
        rows = np.bincount(bucket, weights=self.nodes, minlength=len(degree_edges) + 1)
        return tuple(int(count) for count in rows)


def count_degrees(
    edges: EdgeList, num_nodes: int, path: Path, progress: Callable[[str, float], None]
) -> None:
    """Count the edges that end in each node, and write them to a file as int32.

    Args:
        edges:
            Edges.
        num_nodes:
            Number of nodes N.
        path:
            File to write, of 4 N bytes.
        progress:
            Function that is told what is done now, and which part of it, 0 to 1.

    Raises:
        GraphError:
            If an edge ends outside the nodes.
    """
    passes = range(0, num_nodes, _NODES)
    with open(path, "wb") as file:
        for number, low in enumerate(passes):
            degrees = torch.zeros(min(_NODES, num_nodes - low), dtype=torch.int32)
            for start, block in edges.blocks():
                if number == 0:
                    _check_nodes(edges.name, start, block, num_nodes)
                targets = block[:, 1]
                if len(passes) > 1:
                    targets = targets - low
                    targets = targets[(targets >= 0) & (targets < len(degrees))]
                one = torch.ones(1, dtype=torch.int32).expand(len(targets))
                degrees.index_add_(0, torch.from_numpy(np.ascontiguousarray(targets)), one)
                done = (number + start / edges.num_edges) / len(passes)
                progress("counting degrees", done)
            degrees.numpy().tofile(file)


def read_counts(path: Path, num_nodes: int) -> DegreeCounts:
    """Count the nodes of each degree in the file that :func:`count_degrees` wrote."""
    total: dict[int, int] = {}
    for _, block in _degree_blocks(path, num_nodes):
        for degree, count in zip(*np.unique(block, return_counts=True), strict=True):
            total[int(degree)] = total.get(int(degree), 0) + int(count)
    ranked = sorted(total)
    return DegreeCounts(np.array(ranked), np.array([total[degree] for degree in ranked]))


def place_blocks(
    path: Path, num_nodes: int, counts: DegreeCounts
) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Return the place of each node in falling order of degree, those of one degree in node order.

    Args:
        path:
            File of :func:`count_degrees`.
        num_nodes:
            Number of nodes N.
        counts:
            Number of nodes of each degree.

    Yields:
        First node of a block, and the places of its nodes, ``[n]``.
    """
    free = counts.nodes.sum() - np.cumsum(counts.nodes)  # next place of each degree
    for start, block in _degree_blocks(path, num_nodes):
        kind = np.searchsorted(counts.degrees, block)
        order = np.argsort(kind, kind="stable")
        of_kind = np.bincount(kind, minlength=len(free))
        first = np.cumsum(of_kind) - of_kind
        ranked = kind[order]
        places = np.empty(len(block), np.int32)
        places[order] = free[ranked] + np.arange(len(block)) - first[ranked]
        free = free + of_kind
        yield start, places


def _degree_blocks(path: Path, num_nodes: int) -> Iterator[tuple[int, NDArray[np.int32]]]:
    with open(path, "rb") as file:
        for start in range(0, num_nodes, _ROWS):
            count = min(_ROWS, num_nodes - start)
            yield start, np.frombuffer(os.pread(file.fileno(), 4 * count, 4 * start), np.int32)


def _check_nodes(name: str, start: int, block: NDArray[np.int64], num_nodes: int) -> None:
    if len(block) and not 0 <= block.min() <= block.max() < num_nodes:
        wrong = (block < 0) | (block >= num_nodes)
        edge, side = (int(found[0]) for found in np.nonzero(wrong))
        raise GraphError(
            f"{name}, edge {start + edge}: expected nodes 0 to {num_nodes - 1}, got "
            f"{int(block[edge, side])}"
        )
