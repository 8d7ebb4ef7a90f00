"""Features beside the main ones are quantized and counted, or named in a note."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch_geometric.nn import (
    APPNP,
    LINKX,
    ARMAConv,
    ChebConv,
    FiLMConv,
    GatedGraphConv,
    GCNConv,
    HypergraphConv,
    MessagePassing,
    MixHopConv,
    RGCNConv,
    SGConv,
    SSGConv,
    TAGConv,
)
from torch_geometric.nn.models import GCN as PlainGCN

import sgquant_optuna as sgq
from sgquant_optuna.attachment.layer_inputs import layer_quantizers
from sgquant_optuna.exceptions import ModelError
from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.quantization.memory import FeatureLayout
from tests.attachment.own_models import (
    DNA,
    FAGCN,
    GCNII,
    GPS,
    Embedded,
    OwnModel,
    PointCloud,
    Shared,
    Static,
    Surfaces,
    Two,
)


@pytest.fixture
def bucketed(graph):
    graph.pos, graph.normal = torch.rand(60, 3), torch.rand(60, 3)
    return AddDegreeBuckets((2, 4))(graph)


def calibrated(model, data, num_buckets=3, **options):
    sgq.attach(model, num_buckets=num_buckets, **options)
    return sgq.calibrate(model, data, candidates=(1, 4), forward=forward)


def rows_of(layout):
    """Rows and columns of each layer, over all buckets."""
    rows = {}
    for site, size in layout.sizes.items():
        known = rows.get(site.layer, (0, 0))
        rows[site.layer] = (known[0] + size.num_rows, size.num_columns)
    return rows


HOPS = {
    "sg": (lambda: Two(SGConv(12, 8, K=3), SGConv(8, 3)), {"first.hops": (120, 12)}),
    "ssg": (lambda: Two(SSGConv(12, 8, 0.1, K=3), GCNConv(8, 3)), {"first.hops": (120, 12)}),
    "tag": (lambda: Two(TAGConv(12, 8, K=3), GCNConv(8, 3)), {"first.hops": (120, 12)}),
    "cheb": (lambda: Two(ChebConv(12, 8, K=4), GCNConv(8, 3)), {"first.hops": (120, 12)}),
    "appnp": (lambda: Two(GCNConv(12, 3), APPNP(5, 0.1)), {"second.hops": (240, 3)}),
    "arma": (
        lambda: Two(ARMAConv(12, 8, num_stacks=2, num_layers=3), GCNConv(8, 3)),
        {"first.hops": (240, 8)},
    ),
    "gated": (lambda: Two(GatedGraphConv(16, 3), GCNConv(16, 3)), {"first.hops": (120, 16)}),
    "mixhop": (
        lambda: Two(MixHopConv(12, 4, powers=[0, 1, 3]), GCNConv(12, 3)),
        {"first.hops": (120, 12)},
    ),
    "hypergraph": (
        lambda: Two(HypergraphConv(12, 8), GCNConv(8, 3)),
        {"first.hops": (60, 8)},
    ),
}


@pytest.mark.parametrize("name", HOPS)
def test_features_between_hops_are_counted(name, bucketed):
    make, expected = HOPS[name]
    found = rows_of(calibrated(make(), bucketed))
    assert {layer: size for layer, size in found.items() if "hops" in layer} == expected


@pytest.mark.parametrize(
    "conv", [FiLMConv(12, 8, num_relations=2), RGCNConv(12, 8, num_relations=2)]
)
def test_independent_propagations_of_one_convolution_are_no_hops(conv, graph):
    class Relations(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv

        def forward(self, x, edge_index):
            return self.conv(x, edge_index, torch.arange(edge_index.shape[1]) % 2)

    assert list(rows_of(calibrated(Relations(), graph, num_buckets=1))) == ["conv"]


SECOND = {
    # x_0 is the input of the first layer, which is stored once.
    "gcn2": (GCNII, ["lin1", "conv1", "conv2", "lin2"]),
    "fa": (FAGCN, ["lin1", "conv1", "conv2", "lin2"]),
    "point cloud": (PointCloud, ["conv1", "conv1.pos", "conv2"]),
    "surfaces": (Surfaces, ["conv1", "conv1.pos", "conv1.normal", "conv2"]),
}


@pytest.mark.parametrize("name", SECOND)
def test_second_features_are_counted_where_they_are_stored(name, bucketed):
    make, layers = SECOND[name]
    found = rows_of(calibrated(make(), bucketed))
    assert list(found) == layers
    assert {rows for rows, _ in found.values()} == {60}


def test_x_0_of_all_layers_has_the_quantizer_of_the_first(bucketed):
    model = GCNII()
    calibrated(model, bucketed)
    names = {(path, name): one.name for path, name, one in layer_quantizers(model)}
    assert names[("conv1", "x_0")] == names[("conv2", "x_0")] == "conv1/embedding"
    assert names[("conv2", "x")] == "conv2/embedding"


OTHERS = {
    "dna": (DNA, {"lin1": (60, 12), "conv": (60 + 120, 8), "lin2": (60, 8)}),
    "static": (Static, {"conv1": (120, 12), "conv2": (120, 8)}),
    "jumping knowledge": (
        lambda: PlainGCN(12, 8, 2, 3, jk="lstm"),
        {"convs.0": (60, 12), "convs.1": (60, 8), "jk.att": (120, 16), "lin": (60, 8)},
    ),
    "edges first": (OwnModel, {"conv": (60, 12)}),
    "shared": (Shared, {"conv": (120, 12)}),
    "embedded": (Embedded, {"conv": (60, 8)}),
}
EVERY = {
    **{name: make for name, (make, _) in {**HOPS, **SECOND, **OTHERS}.items()},
    "multihead": lambda: GPS("multihead"),
    "performer": lambda: GPS("performer"),
    "linkx": lambda: LINKX(60, 12, 8, 3, 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_rows_of_every_shape_are_counted(name, bucketed):
    make, expected = OTHERS[name]
    assert rows_of(calibrated(make(), bucketed)) == expected


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_32_bits_change_nothing_and_one_bit_somewhere_does(name, training, bucketed):
    torch.manual_seed(0)
    plain = EVERY[name]().train(training)
    model = copy.deepcopy(plain)
    layout = calibrated(model, bucketed)
    torch.manual_seed(1)
    expected = forward(plain, bucketed)
    torch.manual_seed(1)
    assert forward(model, bucketed).equal(expected)
    for layer in rows_of(layout):
        widths = {site: 1 if site.layer == layer else 32 for site in layout.sizes}
        sgq.set_bit_widths(model, sgq.BitWidths(widths))
        torch.manual_seed(1)
        assert not forward(model, bucketed).equal(expected), layer


@pytest.mark.parametrize("name", EVERY)
def test_copies_pickles_and_detached_models_keep_their_scores(name, bucketed):
    plain = EVERY[name]().eval()
    model = copy.deepcopy(plain)
    layout = calibrated(model, bucketed)
    sgq.set_bit_widths(model, sgq.BitWidths(dict.fromkeys(layout.sizes, 4)))
    expected = forward(model, bucketed)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is type(model)
        assert forward(other, bucketed).equal(expected)
    sgq.detach(model)
    assert repr(model) == repr(plain)
    assert forward(model, bucketed).equal(forward(plain, bucketed))
    for module in model.modules():
        assert not module._forward_pre_hooks and not module._forward_hooks
        assert set(vars(module)) == set(vars(plain.get_submodule(_path(model, module))))


def _path(model, module):
    return next(name for name, one in model.named_modules() if one is module)


@pytest.mark.parametrize("name", ["sg", "shared", "static"])
def test_a_range_for_each_row_fits_several_calls(name, graph):
    model = EVERY[name]().eval()
    layout = calibrated(model, graph, num_buckets=1, config=sgq.QuantizerConfig(axis="row"))
    sgq.set_bit_widths(model, sgq.BitWidths(dict.fromkeys(layout.sizes, 4)))
    assert torch.isfinite(forward(model, graph)).all()
    if name == "shared":
        (size,) = layout.sizes.values()
        assert (size.num_rows, size.num_ranges) == (120, 60)


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("multihead", "conv.attn: not quantized and not counted, because torch runs"),
        ("linkx", "edge_lin: not quantized, because SparseLinear takes no features"),
    ],
)
def test_what_is_left_out_is_noted_by_name(name, note, bucketed):
    layout = calibrated(EVERY[name](), bucketed)
    assert any(line.startswith(note) for line in layout.notes)
    assert FeatureLayout.from_dict(layout.to_dict()) == layout


def test_a_named_layer_without_features_is_refused(graph):
    model = sgq.attach(LINKX(60, 12, 8, 3, 1), layers=["edge_lin"])
    with pytest.raises(ModelError, match="edge_lin: expected floating-point features"):
        sgq.calibrate(model, graph, candidates=(1,), forward=forward)


def test_nodes_and_edges_that_cannot_be_told_apart_are_refused(graph):
    class Conv(MessagePassing):
        def forward(self, x, edge_index, weights):
            return self.propagate(edge_index, x=x) + weights.mean()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = Conv()

        def forward(self, x, edge_index):
            return self.conv(x, edge_index, torch.rand(60, 1))

    graph.edge_index = graph.edge_index[:, :60]
    model = sgq.attach(Model())
    with pytest.raises(ModelError, match="cannot tell whether weights is a matrix of nodes"):
        sgq.calibrate(model, graph, candidates=(1,), forward=forward)


def test_an_embedding_table_is_quantized_anew_when_it_changes(graph):
    model = Embedded().eval()
    layout = calibrated(model, graph, num_buckets=1)
    (size,) = layout.sizes.values()
    assert size.content is None
    sgq.set_bit_widths(model, sgq.BitWidths(dict.fromkeys(layout.sizes, 4)))
    before = forward(model, graph)
    with torch.no_grad():
        model.table.weight.mul_(0.5)
    assert not forward(model, graph).allclose(before)


def test_features_with_gradients_have_no_lossless_store(graph):
    graph.x = nn.Parameter(graph.x)
    layout = calibrated(Two(GCNConv(12, 8), GCNConv(8, 3)), graph, num_buckets=1)
    assert all(size.content is None for size in layout.sizes.values())


def test_features_of_two_widths_in_one_layer_are_refused(graph):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lin = SGConv(12, 12), nn.Linear(12, 3)
            self.hop = APPNP(1, 0.1)

        def forward(self, x, edge_index):
            return self.hop(self.lin(self.hop(x, edge_index)), edge_index)

    model = sgq.attach(Model(), layers=["hop"])
    with pytest.raises(ModelError, match="hop/embedding: expected features of one width"):
        sgq.calibrate(model, graph, candidates=(1,), forward=forward)


def test_default_layers_leave_fused_attention_out():
    layers = ["lin1", "lin2", "conv.conv", "conv.mlp.0", "conv.mlp.3"]
    assert sgq.default_layers(GPS("multihead")) == layers
