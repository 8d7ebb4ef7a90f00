"""Degree buckets of nodes: a PyG transform, and edges that split the nodes evenly.

Reference:
    SGQuant (Feng et al., 2020, arXiv:2007.05100), "Topology-Aware Quantization".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform
from torch_geometric.utils import degree

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.degree_edges import DEFAULT_DEGREE_EDGES, check_degree_edges
from sgquant_optuna.graph.node_types import ONLY_TYPE, Graph, edge_parts, node_parts


def quantile_degree_edges(data: Graph, num_buckets: int) -> tuple[int, ...]:
    """Choose degree edges so that every bucket holds about the same number of nodes.

    There are fewer buckets if many nodes have the same degree. The nodes of all types of a
    heterogeneous graph share the edges.

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
    ranked = torch.cat([*in_degrees(data).values()]).sort().values
    cuts = [len(ranked) * part // num_buckets for part in range(1, num_buckets)]
    lowest = int(ranked[0]) if len(ranked) else 0
    edges = {int(ranked[cut]) for cut in cuts}
    return tuple(sorted(edge for edge in edges if edge > max(lowest, 0)))


def in_degrees(data: Graph) -> dict[str, Tensor]:
    """Return the number of edges that end in each node, ``[N]`` int64; 0 if it is isolated.

    Returns:
        Degrees by node type, over all relations that end there.

    Raises:
        GraphError:
            If the graph has no ``edge_index``.
    """
    nodes = node_parts(data)
    found: dict[str, Tensor] = {}
    for relation, part in edge_parts(data).items():
        edge_index = part.get("edge_index")
        if edge_index is None:
            of = f" of {relation}" if relation else ""
            raise GraphError(
                f"column edge_index{of}: degree buckets expect one, the graph has "
                f"{list(part.keys())}; ToSparseTensor(remove_edge_index=False) keeps it beside "
                f"adj_t"
            )
        target = part._key[2] if relation else ONLY_TYPE
        degrees = degree(edge_index[1], nodes[target].num_nodes, dtype=torch.long)
        found[target] = found[target] + degrees if target in found else degrees
    device = next(iter(found.values())).device
    return {
        name: found.get(name, torch.zeros(part.num_nodes or 0, dtype=torch.long, device=device))
        for name, part in nodes.items()
    }


@functional_transform("add_degree_buckets")
class AddDegreeBuckets(BaseTransform):
    """Add ``data.degree_bucket``, ``[N]`` int64: the bucket of each node by its in-degree.

    Bucket ``b`` holds the nodes with ``edges[b - 1] <= degree < edges[b]``, so isolated nodes are
    in bucket 0. It is a node attribute: in subgraphs and mini-batches each node keeps the bucket
    that it has in the whole graph. In a heterogeneous graph, each node type gets the attribute,
    and a degree counts the edges of all relations that end in a node.

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

    def forward(self, data: Graph) -> Graph:
        """Add the attribute to ``data``, in place, and return it."""
        boundaries = torch.tensor(self.edges, dtype=torch.long)
        parts = node_parts(data)
        for name, degrees in in_degrees(data).items():
            bucket = torch.bucketize(degrees, boundaries.to(degrees.device), right=True)
            parts[name].degree_bucket = bucket
        return data

    def __repr__(self) -> str:
        """Return the constructor call as text."""
        return f"{self.__class__.__name__}(edges={self.edges})"
