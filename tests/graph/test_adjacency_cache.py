import torch

from sgquant_optuna.graph.adjacency_cache import AdjacencyCache


def counting():
    """A cache, and the calls that made its matrices."""
    made = []
    return AdjacencyCache(lambda *given: made.append(given) or len(made)), made


def test_equal_edges_give_the_matrix_that_was_made_of_them():
    cache, made = counting()
    edges = torch.tensor([[0, 1], [1, 0]])
    assert cache.get((edges, None), "flow", 2) == 1
    assert cache.get((edges.clone(), None), "flow", 2) == 1
    assert len(made) == 1


def test_other_edges_weights_or_settings_give_another():
    cache, made = counting()
    edges, weight = torch.tensor([[0, 1], [1, 0]]), torch.ones(2)
    found = [
        cache.get((edges, None), "flow"),
        cache.get((edges.flip(0), None), "flow"),
        cache.get((edges, weight), "flow"),
        cache.get((edges, 2 * weight), "flow"),
        cache.get((edges, None), "against the flow"),
        cache.get((edges[:, :1], None), "flow"),
    ]
    assert found == [1, 2, 3, 4, 5, 6]


def test_the_newest_eight_are_kept():
    cache, made = counting()
    edges = [torch.tensor([[number], [0]]) for number in range(9)]
    for one in edges:
        cache.get((one,))
    for one in edges[1:]:
        cache.get((one,))
    assert len(made) == 9
    cache.get((edges[0],))
    assert len(made) == 10
