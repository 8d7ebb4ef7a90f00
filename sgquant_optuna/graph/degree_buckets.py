"""Degree buckets of nodes: a PyG transform, and edges that split the nodes evenly.

Reference:
    SGQuant (Feng et al., 2020, arXiv:2007.05100), "Topology-Aware Quantization".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform
from torch_geometric.utils import degree

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.degree_edges import DEFAULT_DEGREE_EDGES, check_degree_edges


def quantile_degree_edges(data: Data, num_buckets: int) -> tuple[int, ...]:
    """Choose degree edges so that every bucket holds about the same number of nodes.

    There are fewer buckets if many nodes have the same degree.

    Args:
        data:
            Graph with ``edge_index``, ``[2, E]`` int64.
        num_buckets:
            Number of buckets B to aim at.

    Returns:
        Lower degrees of the buckets above the first, in rising order; at most B - 1.

    Raises:
        ValueError:
            If ``num_buckets`` is below 1.
    """
    if num_buckets < 1:
        raise ValueError(f"number of degree buckets: expected at least 1, got {num_buckets}")
    ranked = in_degree(data).sort().values
    cuts = [len(ranked) * part // num_buckets for part in range(1, num_buckets)]
    lowest = int(ranked[0]) if len(ranked) else 0
    edges = {int(ranked[cut]) for cut in cuts}
    return tuple(sorted(edge for edge in edges if edge > max(lowest, 0)))


def in_degree(data: Data) -> Tensor:
    """Return the number of edges that end in each node, ``[N]`` int64; 0 if it is isolated.

    Raises:
        GraphError:
            If the graph has no ``edge_index``.
    """
    edge_index = data.edge_index
    if edge_index is None:
        raise GraphError(
            f"column edge_index: degree buckets expect one, the graph has {list(data.keys())}; "
            f"ToSparseTensor(remove_edge_index=False) keeps it beside adj_t"
        )
    degrees: Tensor = degree(edge_index[1], data.num_nodes, dtype=torch.long)
    return degrees


@functional_transform("add_degree_buckets")
class AddDegreeBuckets(BaseTransform):
    """Add ``data.degree_bucket``, ``[N]`` int64: the bucket of each node by its in-degree.

    Bucket ``b`` holds the nodes with ``edges[b - 1] <= degree < edges[b]``, so isolated nodes are
    in bucket 0. It is a node attribute: in subgraphs and mini-batches each node keeps the bucket
    that it has in the whole graph.

    Args:
        edges:
            Lower degrees of the buckets above the first, in rising order.

    Raises:
        ValueError:
            If the edges are not positive integers in rising order.

    Reference:
        SGQuant (Feng et al., 2020, arXiv:2007.05100), "Topology-Aware Quantization".
    """

    def __init__(self, edges: Sequence[int] = DEFAULT_DEGREE_EDGES) -> None:
        self.edges = check_degree_edges(edges)

    def forward(self, data: Data) -> Data:
        """Add the attribute to ``data``, in place, and return it."""
        boundaries = torch.tensor(self.edges, dtype=torch.long)
        degrees = in_degree(data)
        data.degree_bucket = torch.bucketize(degrees, boundaries.to(degrees.device), right=True)
        return data

    def __repr__(self) -> str:
        """Return the constructor call as text."""
        return f"{self.__class__.__name__}(edges={self.edges})"
