import pytest
import torch
from torch_geometric.data import Data

from sgquant_optuna.graph.degree_buckets import (
    AddDegreeBuckets,
    quantile_degree_edges,
)


def star(num_leaves: int) -> Data:
    """Leaves that all point to node 0."""
    edge_index = torch.stack(
        [torch.arange(1, num_leaves + 1), torch.zeros(num_leaves, dtype=torch.long)]
    )
    return Data(edge_index=edge_index, num_nodes=num_leaves + 2)


def test_a_bucket_starts_at_its_edge_and_isolated_nodes_are_in_the_first():
    data = AddDegreeBuckets((4, 8))(star(4))
    assert data.degree_bucket.tolist() == [1, 0, 0, 0, 0, 0]
    assert AddDegreeBuckets((5,))(star(4)).degree_bucket[0] == 0
    assert AddDegreeBuckets((4, 8))(star(8)).degree_bucket[0] == 2


def test_a_subgraph_keeps_the_buckets_of_the_whole_graph():
    data = AddDegreeBuckets((4,))(star(4))
    part = data.subgraph(torch.tensor([0, 1]))
    assert part.degree_bucket.tolist() == [1, 0]


@pytest.mark.parametrize("edges", [(0,), (4, 4), (8, 4), (-1, 2)])
def test_edges_that_do_not_rise_are_refused(edges):
    with pytest.raises(ValueError, match="degree edges: expected positive integers"):
        AddDegreeBuckets(edges)


def test_quantile_edges_split_the_nodes_evenly():
    degrees = torch.tensor([1, 2, 3, 4])
    target = torch.arange(4).repeat_interleave(degrees)
    data = Data(edge_index=torch.stack([torch.zeros_like(target), target]), num_nodes=4)
    assert quantile_degree_edges(data, 2) == (3,)
    assert quantile_degree_edges(data, 4) == (2, 3, 4)
    assert quantile_degree_edges(data, 1) == ()


def test_quantile_edges_of_a_regular_graph_make_one_bucket():
    ring = torch.stack([torch.arange(5), (torch.arange(5) + 1) % 5])
    assert quantile_degree_edges(Data(edge_index=ring, num_nodes=5), 4) == ()
