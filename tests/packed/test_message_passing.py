import pytest
import torch
from torch import nn
from torch_geometric.nn import AGNNConv, GATConv, GATv2Conv

from sgquant_optuna.graph.paper_models import AGNN, GAT
from sgquant_optuna.packed import message_passing, packed_tensor
from sgquant_optuna.packed.export import TOLERANCE, export_packed, load_packed
from sgquant_optuna.packed.packed_model import PackedModel
from tests.conftest import make_graph
from tests.packed import test_packed_model
from tests.packed.allocations import LargestOutput

FLOW = "source_to_target"
NUM_NODES, HUB_EDGES = 200, 8_000


def limit_blocks(monkeypatch, edges, values):
    monkeypatch.setattr(message_passing, "ATTENTION_EDGES", edges)
    monkeypatch.setattr(message_passing, "EDGE_VALUES", values)
    monkeypatch.setattr(packed_tensor, "BLOCK_VALUES", values)


@pytest.fixture
def hub():
    """A ring of 200 nodes, and 8000 more edges (most of them parallel) that lead to node 0."""
    generator = torch.Generator().manual_seed(0)
    nodes = torch.arange(NUM_NODES)
    sources = torch.randint(1, NUM_NODES, (HUB_EDGES,), generator=generator)
    ring = torch.stack([nodes, nodes.roll(1)])
    graph = make_graph(NUM_NODES)
    graph.edge_index = torch.cat([ring, torch.stack([sources, torch.zeros_like(sources)])], dim=1)
    return graph


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
@pytest.mark.parametrize("block_edges", [1, 20, 1000])
@pytest.mark.parametrize(
    "build",
    [
        lambda flow: GATConv(5, 4, heads=3, edge_dim=2, flow=flow),
        lambda flow: GATConv(5, 4, heads=3, add_self_loops=False, flow=flow),
        lambda flow: GATv2Conv(5, 4, heads=3, edge_dim=2, flow=flow),
        lambda flow: AGNNConv(flow=flow),
    ],
    ids=["gat", "gat without loops", "gatv2", "agnn"],
)
def test_attention_in_blocks_equals_that_of_pyg(build, block_edges, flow, monkeypatch):
    limit_blocks(monkeypatch, block_edges, 12 * block_edges)
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(30, (2, 200), generator=generator)
    x, given = torch.randn(30, 5, generator=generator), ()
    conv = build(flow)
    if getattr(conv, "edge_dim", None):
        given = (torch.randn(200, 2, generator=generator),)
    with torch.no_grad():
        expected = conv(x, edges, *given)
        message_passing.MessagePasser(nn.ModuleDict({"conv": conv}), {"conv": None})
        torch.testing.assert_close(conv(x, edges, *given), expected, rtol=1e-5, atol=1e-5)


class OwnScores(GATConv):
    def edge_update(self, alpha_j, alpha_i, edge_attr, index, ptr, dim_size):
        return super().edge_update(alpha_j, alpha_i, edge_attr, index, ptr, dim_size) / 2


def test_attention_that_a_subclass_computes_in_its_own_way_is_left_to_it():
    edges, x, conv = torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.rand(3, 4), OwnScores(4, 2)
    with torch.no_grad():
        expected = conv(x, edges)
        passer = message_passing.MessagePasser(nn.ModuleDict({"conv": conv}), {})
        assert torch.equal(conv(x, edges), expected)
    assert passer.fallback == []
    passer = message_passing.MessagePasser(nn.ModuleDict({"conv": conv}), {"conv": None})
    assert passer.fallback == ["conv"]


@pytest.mark.parametrize("name", ["agnn", "gat", "gatv2"])
def test_a_hub_takes_no_more_memory_than_a_block(name, hub, tmp_path, monkeypatch):
    wide = {
        "agnn": lambda: AGNN(12, 3, hidden_channels=64),
        "gat": lambda: GAT(12, 3, hidden_channels=64, heads=8),
        "gatv2": lambda: test_packed_model.TwoConvs(GATv2Conv(12, 16, heads=4), GATv2Conv(64, 3)),
    }
    monkeypatch.setattr(test_packed_model, "MODELS", wide)
    model, data, layout, scores, _ = test_packed_model.quantized(name, hub)
    limit_blocks(monkeypatch, 1 << 10, 1 << 14)
    export_packed(model, data, tmp_path / "m", layout=layout)
    packed = load_packed(
        tmp_path / "m", None if name in test_packed_model.BUILT_IN else wide[name]()
    )
    with LargestOutput() as largest:
        found = packed(data)
    # A code of attention that is rounded otherwise moves a score by more than a sum does.
    test_packed_model.assert_same(found, scores, tolerance=TOLERANCE)
    # An edge is 16 bytes; its attention in 8 heads would be 32, and 64 features 256.
    assert largest.nbytes <= 20 * (HUB_EDGES + 2 * NUM_NODES)


def test_no_block_sees_more_edges_than_it_may(hub, tmp_path, monkeypatch):
    seen = []
    count = PackedModel._count_attention

    def spied(self, name, alpha):
        seen.append(len(alpha))
        return count(self, name, alpha)

    model, data, layout, *_ = test_packed_model.quantized("gat", hub)
    export_packed(model, data, tmp_path / "m", layout=layout)
    limit_blocks(monkeypatch, 300, 1 << 14)
    monkeypatch.setattr(PackedModel, "_count_attention", spied)
    load_packed(tmp_path / "m")(data)
    assert max(seen) <= 300
    assert sum(seen) == 2 * (data.num_edges + NUM_NODES)  # two layers, self-loops included
