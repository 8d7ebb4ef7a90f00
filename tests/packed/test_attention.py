import pytest
import torch
from torch_geometric.nn import AGNNConv, GATConv, GATv2Conv

from sgquant_optuna.packed.attention import agnn_scores, attend, gat_scores, gatv2_scores


@pytest.fixture
def graph():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(30, (200,), generator=generator).sort().values
    source = torch.randint(30, (200,), generator=generator)
    crow = torch.searchsorted(target, torch.arange(31))
    x = torch.randn(30, 5, generator=generator)
    return crow, source, torch.stack([source, target]), x


@pytest.mark.parametrize("block_edges", [1, 20, 1000])
def test_attention_equals_that_of_pyg(graph, block_edges):
    crow, col, edge_index, x = graph
    gat = GATConv(5, 4, heads=3, add_self_loops=False, bias=False)
    h = gat.lin(x).view(30, 3, 4)
    scores = gat_scores((h * gat.att_src).sum(-1), (h * gat.att_dst).sum(-1))
    out = attend(crow, col, scores, h.__getitem__, block_edges=block_edges)
    torch.testing.assert_close(out.flatten(1), gat(x, edge_index), rtol=1e-5, atol=1e-5)

    gat2 = GATv2Conv(5, 4, heads=3, add_self_loops=False, bias=False)
    left, right = gat2.lin_l(x).view(30, 3, 4), gat2.lin_r(x).view(30, 3, 4)
    scores = gatv2_scores(left, right, gat2.att)
    out = attend(crow, col, scores, left.__getitem__, block_edges=block_edges)
    torch.testing.assert_close(out.flatten(1), gat2(x, edge_index), rtol=1e-5, atol=1e-5)

    agnn = AGNNConv(add_self_loops=False)
    scores = agnn_scores(x, agnn.beta)
    out = attend(crow, col, scores, lambda n: x[n, None], block_edges=block_edges)
    torch.testing.assert_close(out[:, 0], agnn(x, edge_index), rtol=1e-5, atol=1e-5)


def test_no_block_sees_more_edges_than_it_may(graph):
    crow, col, _, x = graph
    seen = []
    attend(
        crow,
        col,
        lambda target, source: seen.append(len(source)) or torch.zeros(len(source), 1),
        lambda nodes: x[nodes, None],
        lambda alpha: alpha.round(),
        block_edges=25,
    )
    assert sum(seen) == 200
    assert max(seen) <= 25
