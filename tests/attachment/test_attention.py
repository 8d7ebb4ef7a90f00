import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import AGNNConv, GATConv, GCNConv, MessagePassing, SuperGATConv
from torch_geometric.utils import softmax

from sgquant_optuna.attachment import attention
from sgquant_optuna.attachment.attention import (
    quantize_attention,
    quantized_class,
    register_attention,
)
from sgquant_optuna.attachment.calibration import calibrate
from sgquant_optuna.attachment.quantized_model import attach, set_bit_widths
from sgquant_optuna.exceptions import UnsupportedConvError
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.quantization.sites import BitWidths


class One(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x, edge_index):
        return self.conv(x, edge_index)


class OwnConv(MessagePassing):
    """A convolution of a user, with attention in its message."""

    def __init__(self):
        super().__init__(aggr="add")

    def forward(self, x, edge_index):
        return self.propagate(edge_index, x=x)

    def message(self, x_i, x_j, index, ptr, size_i):
        return softmax((x_i * x_j).sum(1), index, ptr, size_i)[:, None] * x_j


class QuantizedOwnConv(OwnConv):
    def message(self, x_i, x_j, index, ptr, size_i):
        alpha = softmax((x_i * x_j).sum(1), index, ptr, size_i)
        return quantize_attention(self, alpha)[:, None] * x_j


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(attention, "_QUANTIZED", dict(attention._QUANTIZED))


def test_dropped_attention_stays_zero(graph):
    model = One(GATConv(12, 3, heads=2, dropout=0.5))
    attach(model)
    layout = calibrate(model, graph, candidates=(2,), forward=forward)
    set_bit_widths(model, BitWidths(dict.fromkeys(layout.sizes, 2)))
    seen = []
    model.conv.register_message_forward_pre_hook(lambda conv, args: seen.append(args[0]["alpha"]))
    model.train()(graph.x, graph.edge_index)
    alpha = seen[0]
    assert 0.4 < (alpha == 0).float().mean().item() < 0.65
    assert len(alpha.unique()) <= 5  # four codes times 1 / (1 - p), and zero
    assert model.conv.dropout == 0.5


def test_a_subclass_that_changes_nothing_is_quantized_too(graph):
    class Named(GATConv):
        pass

    model = One(Named(12, 3))
    attach(model)
    layout = calibrate(model, graph, candidates=(2,), forward=forward)
    assert len(layout.sizes) == 2
    assert isinstance(model.conv, Named)


def test_a_subclass_with_its_own_attention_is_refused():
    class Own(AGNNConv):
        def message(self, x_j, x_norm_i, x_norm_j, index, ptr, size_i):
            return x_j

    with pytest.raises(UnsupportedConvError, match="Own has its own AGNNConv.message"):
        attach(One(Own()))


@pytest.mark.parametrize("conv", [SuperGATConv(12, 3), GCNConv(12, 3), OwnConv()])
def test_attention_that_cannot_be_reached_is_refused_when_asked_for(conv):
    with pytest.raises(UnsupportedConvError, match="conv: cannot reach the attention of"):
        attach(One(conv), attention=["conv"])


def test_without_asking_only_features_of_unknown_convolutions_are_quantized(graph):
    model = attach(One(OwnConv()))
    layout = calibrate(model, graph, candidates=(2,), forward=forward)
    assert [str(site) for site in layout.sizes] == ["conv/embedding"]


@pytest.mark.usefixtures("registry")
def test_a_users_convolution_can_be_registered(graph):
    register_attention(OwnConv, QuantizedOwnConv)
    model = One(OwnConv()).eval()
    expected = model(graph.x, graph.edge_index)
    attach(model)
    layout = calibrate(model, graph, candidates=(1,), forward=forward)
    assert [str(site) for site in layout.sizes] == ["conv/embedding", "conv/attention"]
    assert model(graph.x, graph.edge_index).equal(expected)
    widths = {site: 1 if site.component == "attention" else 32 for site in layout.sizes}
    set_bit_widths(model, BitWidths(widths))
    assert not model(graph.x, graph.edge_index).allclose(expected)


def test_only_a_subclass_can_be_registered():
    with pytest.raises(TypeError, match="expected a subclass of GCNConv, got OwnConv"):
        register_attention(GCNConv, OwnConv)


def test_a_convolution_without_attention_has_no_class():
    assert quantized_class(GCNConv(3, 3)) is None
    assert quantized_class(nn.Linear(3, 3)) is None


def test_attention_gradients_pass_the_quantizer_unchanged(graph):
    model = One(GATConv(12, 3)).eval()
    attach(model, layers=[])
    layout = calibrate(model, graph, candidates=(1,), forward=forward)
    set_bit_widths(model, BitWidths(dict.fromkeys(layout.sizes, 1)))
    F.cross_entropy(model(graph.x, graph.edge_index), graph.y).backward()
    assert torch.count_nonzero(model.conv.att_src.grad) > 0
