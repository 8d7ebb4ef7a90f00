"""Packed models of every kind of site: convolutions that keep results of their last call."""

import itertools

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCNConv, SuperGATConv

from sgquant_optuna.attachment.calibration import calibrate
from sgquant_optuna.attachment.model_copies import copy_model
from sgquant_optuna.attachment.quantized_model import attach, set_bit_widths
from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.packed.export import export_packed, load_packed
from sgquant_optuna.packed.message_passing import MessagePasser
from sgquant_optuna.quantization.memory import honest_memory
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.sites import BitWidths
from tests.attachment.own_models import Two
from tests.conftest import make_graph

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
