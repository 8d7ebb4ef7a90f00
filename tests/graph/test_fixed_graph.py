import copy

import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, GINConv, SAGEConv

from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.sparse_features import SparseFeatures


@pytest.fixture
def sparse_graph() -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(30, 12, generator=generator)
    x = x * (torch.rand(30, 12, generator=generator) < 0.1)
    return Data(x=x, edge_index=torch.randint(30, (2, 120), generator=generator))


CONVS = {
    "gcn": lambda: GCNConv(12, 4),
    "sage mean": lambda: SAGEConv(12, 4),
    "sage sum": lambda: SAGEConv(12, 4, aggr="sum"),
    "sage max": lambda: SAGEConv(12, 4, aggr="max"),
    "gin": lambda: GINConv(nn.Linear(12, 4)),
    "gat": lambda: GATConv(12, 4, heads=3),
    "gatv2": lambda: GATv2Conv(12, 4, heads=3),
    "gcn reversed": lambda: GCNConv(12, 4, flow="target_to_source"),
}


@pytest.mark.parametrize("name", CONVS)
def test_outputs_and_gradients_are_those_of_plain_pyg(name, sparse_graph):
    conv = CONVS[name]()
    plain = copy.deepcopy(conv)
    expected = plain(sparse_graph.x, sparse_graph.edge_index)
    expected.square().sum().backward()
    with FixedGraph(sparse_graph).speed_up(conv) as graph:
        assert isinstance(graph.x, SparseFeatures)
        for _ in range(2):  # the second time from the caches
            conv.zero_grad()
            out = conv(graph.x, graph.edge_index)
            out.square().sum().backward()
    torch.testing.assert_close(out, expected)
    for one, other in zip(conv.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_the_model_is_as_it_was_afterwards(sparse_graph):
    conv = GCNConv(12, 4)
    before = dict(vars(conv))
    with FixedGraph(sparse_graph).speed_up(conv) as graph:
        conv(graph.x, graph.edge_index)
    assert vars(conv) == before


def test_a_convolution_with_hooks_or_its_own_message_is_left_alone(sparse_graph):
    class Doubled(GCNConv):
        def message(self, x_j, edge_weight):
            return 2 * super().message(x_j, edge_weight)

    hooked = GCNConv(12, 4)
    seen = []
    hooked.register_message_forward_hook(lambda *args: seen.append(1))
    for conv in (Doubled(12, 4), hooked):
        expected = conv(sparse_graph.x, sparse_graph.edge_index)
        with FixedGraph(sparse_graph).speed_up(conv) as graph:
            torch.testing.assert_close(conv(graph.x, graph.edge_index), expected)
    assert len(seen) == 2


def test_edges_that_change_from_pass_to_pass_are_followed(sparse_graph):
    conv = SAGEConv(12, 4)
    other = sparse_graph.edge_index[:, :50]
    fixed = FixedGraph(sparse_graph)
    with fixed.speed_up(conv) as graph:
        for edges in (graph.edge_index, other, graph.edge_index):
            torch.testing.assert_close(
                conv(graph.x, edges), SAGEConv.forward(conv, sparse_graph.x, edges)
            )


def test_the_users_graph_keeps_its_dense_features(sparse_graph):
    FixedGraph(sparse_graph)
    assert type(sparse_graph.x) is torch.Tensor
