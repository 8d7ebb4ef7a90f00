"""Packed models of every kind of site: second features, hops, several calls, 3-D, caches."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch_geometric.nn import (
    APPNP,
    GCN,
    AGNNConv,
    AntiSymmetricConv,
    ARMAConv,
    ChebConv,
    DirGNNConv,
    FAConv,
    GATConv,
    GatedGraphConv,
    GCN2Conv,
    GCNConv,
    HypergraphConv,
    MixHopConv,
    PointGNNConv,
    PointTransformerConv,
    SGConv,
    SSGConv,
    SuperGATConv,
    TAGConv,
    TransformerConv,
)

from sgquant_optuna.attachment.calibration import calibrate
from sgquant_optuna.attachment.quantized_model import attach, set_bit_widths
from sgquant_optuna.exceptions import PackingError, SgquantError
from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.graph.model_copies import copy_model
from sgquant_optuna.packed.container import read_container, write_container
from sgquant_optuna.packed.export import export_packed, load_packed
from sgquant_optuna.packed.message_passing import MessagePasser
from sgquant_optuna.quantization.memory import honest_memory
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.sites import BitWidths
from tests.attachment.own_models import (
    DNA,
    FAGCN,
    GCNII,
    OwnConv,
    OwnModel,
    PointCloud,
    Shared,
    Static,
    Surfaces,
    Two,
)
from tests.conftest import make_graph
from tests.packed.test_crafted_files import alterations

WIDTHS = (4, 8, 3, 32, 16)


def graph_with_columns():
    graph = make_graph()
    generator = torch.Generator().manual_seed(2)
    graph.pos = torch.rand(60, 3, generator=generator)
    graph.normal = nn.functional.normalize(torch.rand(60, 3, generator=generator), dim=1)
    return graph


def export(make, path, *, axis="tensor", buckets=False, layers=None, widths=WIDTHS):
    """Write a quantized model; return it with its graph, layout, scores and widths."""
    torch.manual_seed(1)
    graph = graph_with_columns()
    graph = AddDegreeBuckets((2, 4))(graph) if buckets else graph
    model = attach(
        make(), config=QuantizerConfig(axis=axis), num_buckets=3 if buckets else 1, layers=layers
    )
    fixed = FixedGraph(graph)
    with fixed.speed_up(model) as fast:
        layout = calibrate(model, fast, candidates=widths, forward=forward)
        bits = BitWidths(dict(zip(layout.sizes, itertools.cycle(widths))))
        set_bit_widths(model, bits)
        with torch.no_grad():
            scores = forward(model.eval(), fast)
    export_packed(model, fixed.data, path, layout=layout)
    return model, fixed.data, layout, scores, bits


def check_same(make, path, **options):
    """Check scores, bytes and widths of a packed model against the quantized one."""
    _, data, layout, scores, bits = export(make, path, **options)
    packed = load_packed(path, make())
    for _ in range(2):  # nothing is left over from the first call
        found = packed(data)
        assert torch.allclose(found, scores, rtol=0, atol=1e-5 * float(scores.abs().max()))
        assert torch.equal(found.argmax(1), scores.argmax(1))
        assert sum(packed.stored_nbytes.values()) == honest_memory(layout, bits).memory_bytes
    assert packed.bit_widths == bits
    return layout


def test_a_convolution_that_keeps_a_tensor_of_training_packs(tmp_path):
    def make():
        torch.manual_seed(0)
        model = Two(SuperGATConv(12, 4, heads=2), SuperGATConv(8, 3))
        graph = make_graph()
        forward(model.train(), graph).sum().backward()
        assert model.first.att_x is not None and model.first.att_x.grad_fn is not None
        return model

    check_same(make, tmp_path / "m")


def test_a_normalising_convolution_tells_edges_apart_by_their_values():
    x, edges, conv = torch.rand(4, 3), torch.tensor([[0, 1, 2], [1, 2, 3]]), GCNConv(3, 2)
    others = [edges, edges.flip(0), edges[:, :2], edges.clone()]
    with torch.no_grad():
        expected = [conv(x, one) for one in others]
        MessagePasser(nn.ModuleDict({"conv": conv}), {})
        for one, scores in zip(others, expected, strict=True):
            torch.testing.assert_close(conv(x, one), scores)


@pytest.mark.parametrize("edges", ["edge_index", "turned"])
def test_a_convolution_that_caches_edges_does_not_keep_those_of_before(edges, tmp_path):
    def make():
        torch.manual_seed(0)
        model = Two(GCNConv(12, 8, cached=True), GCNConv(8, 3, cached=True))
        graph = make_graph()
        turned = graph.edge_index.flip(0) if edges == "turned" else graph.edge_index
        model(graph.x, turned)
        return copy_model(model)

    check_same(make, tmp_path / "m")


class FirstFeatures(nn.Module):
    """Its second layer takes the graph's own features once more."""

    def __init__(self, conv):
        super().__init__()
        self.conv1, self.conv2 = conv(), conv()
        self.lin = nn.Linear(12, 3)

    def forward(self, x, edge_index):
        hidden = self.conv1(x, x, edge_index).tanh()
        return self.lin(self.conv2(hidden, x, edge_index))


class BothWays(nn.Module):
    """Calls one convolution along the edges and against them."""

    def __init__(self):
        super().__init__()
        self.lin, self.conv = nn.Linear(12, 8), GCNConv(8, 8)

    def forward(self, x, edge_index):
        x = self.lin(x)
        return self.conv(self.conv(x, edge_index).tanh(), edge_index.flip(0))


class Twice(nn.Module):
    """Calls one convolution with attention twice."""

    def __init__(self, conv):
        super().__init__()
        self.lin, self.conv = nn.Linear(12, 8), conv

    def forward(self, x, edge_index):
        x = self.lin(x)
        return self.conv(self.conv(x, edge_index).tanh(), edge_index.flip(0))


class Points(nn.Module):
    """Two convolutions of points, whose second takes the positions too."""

    def __init__(self, conv):
        super().__init__()
        self.conv1, self.conv2 = conv(12, 12), conv(12, 12)
        self.lin = nn.Linear(12, 3)

    def forward(self, x, edge_index, pos):
        x = self.conv1(x, pos, edge_index).tanh()
        return self.lin(self.conv2(x, pos, edge_index))


def point_gnn(num_inputs, num_outputs):
    return PointGNNConv(nn.Linear(12, 3), nn.Linear(15, 12), nn.Linear(12, 12))


class Unnamed(OwnConv):
    def forward(self, *given):
        return super().forward(given[1], given[0])


class NamedAlone(OwnConv):
    def forward(self, *, edge_index, h):
        return super().forward(edge_index, h)


class Given(nn.Module):
    """Gives a layer its features without a name, or by name alone."""

    def __init__(self, conv):
        super().__init__()
        self.conv, self.by_name = conv, isinstance(conv, NamedAlone)

    def forward(self, x, edge_index):
        if self.by_name:
            return self.conv(edge_index=edge_index, h=x)
        return self.conv(x, edge_index)


SECOND = {
    "GCN2Conv": GCNII,
    "FAConv": FAGCN,
    "GCN2Conv of the input": lambda: FirstFeatures(lambda: GCN2Conv(12, 0.1)),
    "FAConv of the input": lambda: FirstFeatures(lambda: FAConv(12)),
    "PointNetConv": PointCloud,
    "PPFConv": Surfaces,
    "x by another name": OwnModel,
    "x without a name": lambda: Given(Unnamed()),
    "x by name alone": lambda: Given(NamedAlone()),
    "PointTransformerConv": lambda: Points(PointTransformerConv),
    "PointGNNConv": lambda: Points(point_gnn),
}
HOPS = {
    "SGConv": lambda: Two(SGConv(12, 8, K=2), SGConv(8, 3, K=3)),
    "SGConv, cached": lambda: Two(SGConv(12, 8, K=2, cached=True), SGConv(8, 3, cached=True)),
    "SSGConv": lambda: Two(SSGConv(12, 8, 0.1, K=2), SSGConv(8, 3, 0.1, K=2)),
    "TAGConv": lambda: Two(TAGConv(12, 8), TAGConv(8, 3)),
    "ChebConv": lambda: Two(ChebConv(12, 8, 3), ChebConv(8, 3, 4)),
    "APPNP": lambda: Two(EdgelessLinear(12, 8), APPNP(4, 0.1)),
    "ARMAConv": lambda: Two(ARMAConv(12, 8, 2, 2), ARMAConv(8, 3, 2, 2)),
    "MixHopConv": lambda: Two(MixHopConv(12, 4, [0, 2]), MixHopConv(8, 3)),
    "HypergraphConv": lambda: Two(HypergraphConv(12, 8), HypergraphConv(8, 3)),
    "GatedGraphConv": lambda: Two(GatedGraphConv(14, 3), GatedGraphConv(16, 2)),
}
CALLS = {
    "twice": Shared,
    "both ways": BothWays,
    "GATConv": lambda: Twice(GATConv(8, 4, heads=2)),
    "AGNNConv": lambda: Twice(AGNNConv()),
    "TransformerConv": lambda: Twice(TransformerConv(8, 4, heads=2)),
    "AntiSymmetricConv": lambda: Two(AntiSymmetricConv(12, num_iters=2), GCNConv(12, 3)),
    "DirGNNConv": lambda: Two(DirGNNConv(GCNConv(12, 8)), DirGNNConv(GCNConv(8, 3))),
}
DEEPER = {
    "LSTM": lambda: GCN(12, 8, num_layers=2, out_channels=3, jk="lstm"),
    "DNAConv": DNA,
    "static": Static,
}


class EdgelessLinear(nn.Linear):
    def forward(self, x, edge_index):
        return super().forward(x)


@pytest.mark.parametrize("buckets", [False, True], ids=["one width", "by degree"])
@pytest.mark.parametrize("name", [*SECOND, *HOPS, *CALLS, *DEEPER])
def test_scores_and_bytes_are_those_of_the_quantized_model(name, buckets, tmp_path):
    make = {**SECOND, **HOPS, **CALLS, **DEEPER}[name]
    check_same(make, tmp_path / "m", buckets=buckets)


@pytest.mark.parametrize("buckets", [False, True], ids=["one width", "by degree"])
@pytest.mark.parametrize("axis", ["bucket", "column", "row"])
@pytest.mark.parametrize(
    "name", ["GCN2Conv", "PointNetConv", "SGConv", "GatedGraphConv", "both ways", "static"]
)
def test_every_axis_of_ranges_packs(name, axis, buckets, tmp_path):
    make = {**SECOND, **HOPS, **CALLS, **DEEPER}[name]
    if (name, axis, buckets) == ("static", "row", True):
        with pytest.raises(PackingError, match="conv1/embedding: expected a row for each of 60"):
            export(make, tmp_path / "m", axis=axis, buckets=buckets)
        assert list(tmp_path.iterdir()) == []
    else:
        check_same(make, tmp_path / "m", axis=axis, buckets=buckets)


def test_a_tensor_that_several_layers_take_is_stored_once(tmp_path):
    layout = check_same(GCNII, tmp_path / "m")
    assert [str(site) for site in layout.sizes] == [
        *("lin1/embedding", "conv1/embedding", "conv2/embedding", "lin2/embedding")
    ]
    fields, _ = read_container(tmp_path / "m", "packed_model")
    assert fields["arguments"]["conv1"] == [["x", "conv1/embedding"], ["x_0", "conv1/embedding"]]
    assert fields["arguments"]["conv2"] == [["x", "conv2/embedding"], ["x_0", "conv1/embedding"]]
    assert fields["hops"] == {}


def test_each_call_stores_its_codes_and_all_calls_one_range(tmp_path):
    # 60 nodes of 12 features: 6 bytes of a row at 4 bits, twice, and one range of 8 bytes.
    export(Shared, tmp_path / "m", widths=(4,))
    packed = load_packed(tmp_path / "m", Shared())
    packed(graph_with_columns())
    assert packed.stored_nbytes == {"conv/embedding": 2 * 60 * 6 + 8, "bucket ids": 0}


@pytest.mark.parametrize("make", [GCNII, Shared, HOPS["SGConv"], HOPS["GatedGraphConv"]])
def test_nothing_of_a_call_is_kept(make, tmp_path):
    export(make, tmp_path / "m")
    packed = load_packed(tmp_path / "m", make())
    packed(graph_with_columns())
    assert all(packer._last is None for packer in packed._packers.values())


@pytest.mark.parametrize("name", ["GCN2Conv", "PPFConv", "TAGConv", "GatedGraphConv", "twice"])
def test_an_altered_header_is_refused_or_gives_scores(name, tmp_path):
    make = {**SECOND, **HOPS, **CALLS}[name]
    _, data, _, scores, _ = export(make, tmp_path / "m", buckets=True)
    fields, tensors = read_container(tmp_path / "m", "packed_model")
    part = {key: fields[key] for key in ("arguments", "hops", "layout")}

    @settings(deadline=None, max_examples=25)
    @given(alterations(part, tensors))
    def alter(altered):
        write_container(tmp_path / "y", "packed_model", {**fields, **altered[0]}, altered[1])
        try:
            found = load_packed(tmp_path / "y", make())(data)
        except SgquantError:
            return
        assert found.shape == scores.shape
        assert bool(torch.isfinite(found).all())

    alter()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arguments": {}}, "conv1/embedding: expected a site of the layout that one argument"),
        ({"arguments": {"conv1": "x"}}, "arguments of conv1: expected a list, got 'x'"),
        ({"arguments": {"conv1": [["x", 5]]}}, "arguments of conv1: expected pairs of str and"),
        ({"arguments": {"conv1": [["x", "conv9/embedding"]]}}, "expected a site for x, got conv9"),
        ({"hops": {"conv1": [[-1, "x"]]}}, "call of a hop of conv1: expected a whole number"),
        ({"hops": {"conv1": [[0, "x"]]}}, "conv1.hops/embedding: expected a site of the layout"),
        ({"hops": []}, "hops: expected an object"),
    ],
)
def test_a_header_says_what_was_expected(change, message, tmp_path):
    export(GCNII, tmp_path / "m")
    fields, tensors = read_container(tmp_path / "m", "packed_model")
    write_container(tmp_path / "y", "packed_model", {**fields, **change}, tensors)
    with pytest.raises(PackingError, match=message):
        load_packed(tmp_path / "y", GCNII())


def test_features_of_another_width_are_refused(tmp_path):
    _, data, *_ = export(GCNII, tmp_path / "m")
    fields, tensors = read_container(tmp_path / "m", "packed_model")
    fields["layout"]["sizes"]["lin2/embedding"]["num_columns"] = 5
    write_container(tmp_path / "y", "packed_model", fields, tensors)
    with pytest.raises(PackingError, match="lin2/embedding: expected 5 columns, got 8"):
        load_packed(tmp_path / "y", GCNII())(data)
