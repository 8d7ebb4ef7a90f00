from contextlib import closing

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch_geometric.data import Data

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.degree_buckets import quantile_degree_edges
from sgquant_optuna.packed import degree_order
from sgquant_optuna.packed.degree_order import (
    DegreeCounts,
    EdgeList,
    count_degrees,
    place_blocks,
    read_counts,
)


def said(what, part):
    assert 0 <= part <= 1


def places_of(edges, num_nodes, path):
    count_degrees(edges, num_nodes, path, said)
    counts = read_counts(path, num_nodes)
    blocks = list(place_blocks(path, num_nodes, counts))
    assert [start for start, _ in blocks] == list(range(0, num_nodes, degree_order._ROWS))
    return counts, np.concatenate([places for _, places in blocks])


def test_rows_lie_in_falling_order_of_degree_and_then_of_their_number(tmp_path):
    """Degrees 1, 0, 3, 1, 0: node 2 first, then 0 and 3, then 1 and 4."""
    edges = EdgeList(torch.tensor([[0, 1, 2, 3, 4], [2, 2, 2, 0, 3]]))
    counts, places = places_of(edges, 5, tmp_path / "degrees")
    assert np.fromfile(tmp_path / "degrees", np.int32).tolist() == [1, 0, 3, 1, 0]
    assert (counts.degrees.tolist(), counts.nodes.tolist()) == ([0, 1, 3], [2, 2, 1])
    assert places.tolist() == [1, 3, 0, 2, 4]
    assert counts.bucket_rows((1, 2)) == (2, 2, 1)
    assert counts.bucket_rows(()) == (5,)


@pytest.mark.parametrize("kind", ["npy", "fortran", "big-endian", "int32", "safetensors"])
def test_some_nodes_and_edges_at_a_time_give_the_same_order(tmp_path, monkeypatch, kind):
    edge_index = torch.randint(100, (2, 1000), generator=torch.Generator().manual_seed(0))
    _, expected = places_of(EdgeList(edge_index), 100, tmp_path / "whole")
    path, array = tmp_path / "edges.npy", edge_index.numpy()
    if kind == "safetensors":
        save_file({"edge_index": edge_index}, path := tmp_path / "edges.safetensors")
    elif kind == "fortran":
        np.save(path, np.asfortranarray(array))
    else:
        np.save(path, array.astype({"big-endian": ">i8", "int32": "<i4"}.get(kind, "<i8")))
    for name, value in (("_NODES", 30), ("_EDGES", 70), ("_ROWS", 7)):
        monkeypatch.setattr(degree_order, name, value)
    with closing(EdgeList(path)) as edges:
        _, places = places_of(edges, 100, tmp_path / "parts")
    assert np.array_equal(places, expected)


@pytest.mark.parametrize("num_buckets", [1, 2, 3, 4])
def test_buckets_of_equal_size_are_those_of_a_search(num_buckets):
    generator = torch.Generator().manual_seed(0)
    edge_index = (300 * torch.rand(2, 3000, generator=generator) ** 2).long()
    expected = quantile_degree_edges(Data(edge_index=edge_index, num_nodes=300), num_buckets)
    degrees, nodes = np.unique(np.bincount(edge_index[1], minlength=300), return_counts=True)
    assert DegreeCounts(degrees, nodes).quantile_edges(num_buckets) == expected


def test_more_widths_than_the_degrees_make_buckets_for_are_told():
    with pytest.raises(GraphError, match="expected 3 buckets .* got 2, as many nodes have one"):
        DegreeCounts(np.array([1, 2]), np.array([5, 5])).quantile_edges(3)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (np.array([[0, 1, 2], [1, 5, 0]]), r"edges.npy, edge 1: expected nodes 0 to 4, got 5"),
        (np.array([[0, -3], [1, 0]]), r"edges.npy, edge 1: expected nodes 0 to 4, got -3"),
        (np.zeros((2, 3)), r"edges.npy: expected integers \[2, E\], got float64 \[2, 3\]"),
        (np.zeros((3, 2), int), r"edges.npy: expected integers \[2, E\], got int64 \[3, 2\]"),
        (np.zeros(3, int), r"edges.npy: expected a matrix \[2, E\], got the shape \[3\]"),
    ],
)
def test_edges_that_do_not_fit_are_told(tmp_path, edges, message):
    np.save(tmp_path / "edges.npy", edges)
    with pytest.raises(GraphError, match=message):
        with closing(EdgeList(tmp_path / "edges.npy")) as found:
            count_degrees(found, 5, tmp_path / "degrees", said)
