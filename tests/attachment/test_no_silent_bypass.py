"""A hidden quantizer, another graph's buckets or a broken forward pass never stay unnoticed."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import GCN2Conv, GCNConv, SGConv, SSGConv, SuperGATConv

import sgquant_optuna as sgq
from sgquant_optuna.attachment.bypass_guard import check_effects
from sgquant_optuna.exceptions import CalibrationError, GraphError, QuantizerBypassedError
from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.graph.model_copies import copy_model
from sgquant_optuna.graph.paper_models import GAT, GCN
from tests.attachment.own_models import Bucketed, Embedded, Two
from tests.conftest import FAST, make_graph

CACHED = {
    "sg": lambda: Two(SGConv(12, 8, K=2, cached=True), SGConv(8, 3, cached=True)),
    "ssg": lambda: Two(SSGConv(12, 8, 0.1, K=2, cached=True), GCNConv(8, 3, cached=True)),
}


def calibrated(model, data, num_buckets=1, **options):
    sgq.attach(model, num_buckets=num_buckets, **options)
    return sgq.calibrate(model, data, candidates=(1, 4), forward=forward)


def set_all(model, layout, width):
    sgq.set_bit_widths(model, sgq.BitWidths(dict.fromkeys(layout.sizes, width)))


@pytest.mark.parametrize("name", CACHED)
def test_cached_features_do_not_hide_a_quantizer(name, graph):
    model = CACHED[name]().eval()
    expected = forward(model, graph)  # fills the caches
    layout = calibrated(model, graph)
    assert forward(model, graph).equal(expected)
    set_all(model, layout, 1)
    assert not forward(model, graph).equal(expected)
    sgq.detach(model)
    assert model.first.cached
    assert forward(model, graph).equal(expected)
    cached = model.first._cached_x if name == "sg" else model.first._cached_h
    assert cached is not None


def test_cached_edges_of_another_graph_are_forgotten(graph):
    model = Two(GCNConv(12, 8, cached=True), GCNConv(8, 3)).eval()
    other = make_graph(seed=5)
    forward(model, other)
    sgq.attach(model)
    assert model.first.cached and model.first._cached_edge_index is None


class Keeps(nn.Module):
    """Keeps what its first convolution gave in the first call."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.kept = GCNConv(12, 8), GCNConv(8, 3), None

    def forward(self, x, edge_index):
        found = self.conv1(x, edge_index)
        self.kept = found.detach() if self.kept is None else self.kept
        return self.conv2(self.kept, edge_index)


class Unused(nn.Module):
    """Throws away what one of its layers gives."""

    def __init__(self):
        super().__init__()
        self.conv, self.lin = GCNConv(12, 3), nn.Linear(12, 3)

    def forward(self, x, edge_index):
        self.lin(x)
        return self.conv(x, edge_index)


@pytest.mark.parametrize(("make", "site"), [(Keeps, "conv1"), (Unused, "lin")])
def test_a_site_without_effect_is_refused_by_name(make, site, graph):
    with pytest.raises(QuantizerBypassedError, match=f"the quantizer of {site}/embedding: expect"):
        sgq.QuantizationObjective(make(), graph, degree_edges=(2,), finetuning=FAST)


def test_a_refused_layer_can_be_left_out(graph):
    objective = sgq.QuantizationObjective(
        Unused(), graph, degree_edges=(2,), finetuning=FAST, layers=["conv"]
    )
    assert {site.layer for site in objective.layout.sizes} == {"conv"}


def test_exact_values_have_no_effect_and_are_no_error(graph):
    graph.x = (graph.x > 0.5).float()  # exact with one bit
    layout = calibrated(model := GCN(12, 3), graph)
    check_effects(model, lambda: forward(model, graph))
    assert all(one.candidates == (1, 4) for _, one in _quantizers(model))
    assert forward(model, graph).shape == (60, 3)
    assert len(layout.sizes) == 2


def test_equal_attention_is_no_error(graph):
    graph.edge_index = torch.stack([torch.arange(60), torch.arange(60).roll(1)])
    model = GAT(12, 3, 16, heads=4)
    for conv in (model.conv1, model.conv2):
        nn.init.zeros_(conv.att_src)
        nn.init.zeros_(conv.att_dst)  # all coefficients are 1/2
    calibrated(model, graph)
    check_effects(model, lambda: forward(model, graph))


def test_the_check_leaves_widths_modes_and_random_numbers(graph):
    model = GAT(12, 3, 16, heads=4).train()
    layout = calibrated(model, graph)
    set_all(model, layout, 4)
    before = torch.get_rng_state()
    check_effects(model, lambda: forward(model, graph))
    assert torch.get_rng_state().equal(before)
    assert model.training and model.conv1.training
    assert {one.bit_widths for _, one in _quantizers(model)} == {(4,)}


def _quantizers(model):
    from sgquant_optuna.attachment.quantized_model import quantizers

    return list(quantizers(model))


@pytest.fixture
def bucketed(graph):
    return AddDegreeBuckets((2, 4))(graph)


@pytest.fixture
def other():
    return AddDegreeBuckets((2, 4))(make_graph(seed=9))


@pytest.mark.parametrize(
    "options", [{"num_buckets": 3}, {"config": sgq.QuantizerConfig(axis="row")}]
)
def test_another_graph_with_as_many_nodes_is_refused_until_it_is_bound(options, bucketed, other):
    model = GCN(12, 3, 8).eval()
    set_all(model, calibrated(model, bucketed, **options), 4)
    with pytest.raises(GraphError, match="expected the one that is bound to the model"):
        model(other.x, other.edge_index)
    sgq.bind(model, other)
    assert model(other.x, other.edge_index).shape == (60, 3)


def test_a_whole_graph_is_bound_by_the_call(bucketed, other):
    model = Bucketed().eval()
    set_all(model, calibrated(model, bucketed, num_buckets=3), 4)
    found = model(other)
    sgq.bind(model, other)
    assert model(other).equal(found)
    del other.degree_bucket
    again = copy.copy(bucketed)
    assert model(again).shape == (60, 3)


@pytest.mark.parametrize("change", ["features", "edges", "copies"])
def test_noise_dropped_edges_and_copies_are_the_same_graph(change, bucketed):
    model = GCN(12, 3, 8).eval()
    set_all(model, calibrated(model, bucketed, num_buckets=3), 4)
    x, edge_index = bucketed.x, bucketed.edge_index
    if change != "edges":
        x = x.clone() if change == "copies" else x + 0.01
    if change != "features":
        edge_index = edge_index.clone() if change == "copies" else edge_index[:, ::2]
    assert model(x, edge_index).shape == (60, 3)


def test_a_bound_mini_batch_has_its_own_buckets(bucketed):
    model = GCN(12, 3, 8).eval()
    set_all(model, calibrated(model, bucketed, num_buckets=3), 4)
    for start in (0, 20, 40):
        part = bucketed.subgraph(torch.arange(start, start + 20))
        with pytest.raises((CalibrationError, GraphError)):
            model(part.x, part.edge_index)
        sgq.bind(model, part)
        assert model(part.x, part.edge_index).shape == (20, 3)


def test_an_embedding_model_needs_no_features(bucketed):
    bucketed.x = None
    model = Embedded().eval()
    set_all(model, calibrated(model, bucketed, num_buckets=3), 4)
    assert model(bucketed.edge_index[:, ::2]).shape == (60, 3)


class Interrupted(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.conv1, self.conv2, self.error = GCN2Conv(12, 0.1), GCNConv(12, 3), error

    def forward(self, x, edge_index):
        h = self.conv1(x, x + 1, edge_index)
        if self.error is not None:
            raise self.error
        return self.conv2(h, edge_index)


def records_dropout():
    return hasattr(F.dropout(torch.ones(4)), "_sgquant_before_dropout")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError(), SystemExit()])
def test_an_interrupted_call_leaves_no_trace(error, graph):
    model = Interrupted(None).train()
    model.conv2.eval()  # a frozen part
    plain = copy.deepcopy(model)
    calibrated(model, graph)
    model.error = error
    state = torch.get_rng_state()
    with pytest.raises(type(error)):
        sgq.calibrate(model, graph, candidates=(1,), forward=forward)
    with pytest.raises(type(error)):
        model(graph.x, graph.edge_index)
    assert torch.get_rng_state().equal(state)
    assert not records_dropout()
    assert model.training and model.conv1.training and not model.conv2.training
    model.error = None
    sgq.detach(model)
    assert repr(model) == repr(plain)
    for one, other in zip(model.modules(), plain.modules(), strict=True):
        assert type(one) is type(other)
        assert vars(one).keys() == vars(other).keys()
        assert not one._forward_pre_hooks


@pytest.mark.parametrize("at", ["quantize_input", "with_quantized_call", "suspend_caches"])
def test_an_interrupted_attach_leaves_no_trace(at, graph, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    model = Two(SGConv(12, 8, cached=True), GCNConv(8, 3))
    plain = copy.deepcopy(model)
    from sgquant_optuna.attachment import quantized_model

    if at == "quantize_input":
        monkeypatch.setattr(GCNConv, "register_forward_pre_hook", interrupt)
    else:
        monkeypatch.setattr(quantized_model, at, interrupt)
    with pytest.raises(KeyboardInterrupt):
        sgq.attach(model)
    assert repr(model) == repr(plain)
    for one, other in zip(model.modules(), plain.modules(), strict=True):
        assert vars(one).keys() == vars(other).keys()
        assert not one._forward_pre_hooks
    assert model.first.cached


def test_a_model_that_keeps_results_of_training_can_be_searched(graph):
    model = Two(SuperGATConv(12, 8), SuperGATConv(8, 3))
    F.cross_entropy(model.train()(graph.x, graph.edge_index), graph.y).backward()
    copied = copy_model(model)
    assert copied(graph.x, graph.edge_index).shape == (60, 3)
    assert repr(copied) == repr(model)
    objective = sgq.QuantizationObjective(model, graph, degree_edges=(2,), finetuning=FAST)
    assert len(objective.layout.sizes) == 4
