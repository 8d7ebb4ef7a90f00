import torch

from sgquant_optuna.packed.adjacency import Adjacency


def test_edges_lie_by_destination_and_then_as_given_or_by_source():
    sources = torch.tensor([5, 1, 4, 1, 0, 3, 2])
    targets = torch.tensor([2, 0, 2, 2, 1, 2, 0])
    adjacency = Adjacency(torch.stack([sources, targets]), "source_to_target", 6)
    assert adjacency.crow.tolist() == [0, 2, 3, 7, 7, 7, 7]
    assert adjacency.edges(slice(0, 7)).tolist() == [1, 6, 4, 0, 2, 3, 5]
    assert adjacency.order.tolist() == [1, 6, 4, 3, 5, 2, 0]
    assert adjacency.to_source(slice(3, 7)).tolist() == [2, 3, 1, 0]
