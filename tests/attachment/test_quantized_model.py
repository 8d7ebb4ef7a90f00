import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn import (
    GATv2Conv,
    GCNConv,
    GINConv,
    SAGEConv,
    TransformerConv,
)
from torch_geometric.utils import to_torch_csr_tensor

from sgquant_optuna.attachment.calibration import calibrate
from sgquant_optuna.attachment.quantized_model import attach, bind, detach, set_bit_widths
from sgquant_optuna.exceptions import (
    CalibrationError,
    GraphError,
    ModelError,
    QuantizerBypassedError,
)
from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.graph.paper_models import AGNN, GAT, GCN
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.sites import BitWidths, Site


class Net(nn.Module):
    """Two convolutions; the second is called by keyword."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x, edge_index):
        x = F.dropout(x, 0.5, self.training)
        x = self.first(x, edge_index).relu()
        x = F.dropout(x, 0.5, self.training)
        return self.second(x=x, edge_index=edge_index)


MODELS = {
    "gcn": lambda: GCN(12, 3, 8),
    "agnn": lambda: AGNN(12, 3, 8),
    "gat": lambda: GAT(12, 3, 16, heads=4),
    "gatv2": lambda: Net(GATv2Conv(12, 4, heads=2, dropout=0.3), GATv2Conv(8, 3)),
    "transformer": lambda: Net(
        TransformerConv(12, 4, heads=2, dropout=0.3), TransformerConv(8, 3)
    ),
    "sage": lambda: Net(SAGEConv(12, 8), SAGEConv(8, 3)),
    "gin": lambda: Net(
        GINConv(nn.Linear(12, 8)), GINConv(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)))
    ),
}
WITH_ATTENTION = {"agnn", "gat", "gatv2", "transformer"}


@pytest.fixture
def bucketed(graph: Data) -> Data:
    return AddDegreeBuckets((2, 4))(graph)


def quantized(model, data, width=4, num_buckets=3, **options):
    attach(model, num_buckets=num_buckets, **options)
    layout = calibrate(model, data, candidates=(1, 2, 4, 8), forward=forward)
    set_bit_widths(model, BitWidths(dict.fromkeys(layout.sizes, width)))
    return layout


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_32_bits_are_bit_identical_to_the_plain_model(name, training, bucketed):
    plain = MODELS[name]().train(training)
    model = copy.deepcopy(plain)
    quantized(model, bucketed, width=32)
    assert model.training == training
    torch.manual_seed(7)
    expected = plain(bucketed.x, bucketed.edge_index)
    torch.manual_seed(7)
    assert model(bucketed.x, bucketed.edge_index).equal(expected)


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_and_every_attention_becomes_a_site(name, bucketed):
    model = MODELS[name]()
    layout = quantized(model, bucketed)
    components = {(site.layer, site.component) for site in layout.sizes}
    layers = {name for name, module in model.named_children() if name != "props"}
    if name == "agnn":
        layers |= {"props.0", "props.1"}
    assert {layer for layer, component in components if component == "embedding"} == layers
    attention = {layer for layer, component in components if component == "attention"}
    convs = {layer for layer in layers if not layer.startswith("lin")}
    assert attention == (convs if name in WITH_ATTENTION else set())


@pytest.mark.parametrize("name", sorted(WITH_ATTENTION))
def test_attention_alone_changes_the_output(name, bucketed):
    model = MODELS[name]().eval()
    expected = model(bucketed.x, bucketed.edge_index)
    layout = quantized(model, bucketed, width=32)
    widths = {site: 1 if site.component == "attention" else 32 for site in layout.sizes}
    set_bit_widths(model, BitWidths(widths))
    assert not model(bucketed.x, bucketed.edge_index).allclose(expected)


@pytest.mark.parametrize("name", MODELS)
def test_detach_gives_the_plain_model_back(name, bucketed):
    model = MODELS[name]().eval()
    plain = copy.deepcopy(model)
    quantized(model, bucketed)
    assert not model(bucketed.x, bucketed.edge_index).equal(plain(bucketed.x, bucketed.edge_index))
    detach(model)
    assert repr(model) == repr(plain)
    assert model(bucketed.x, bucketed.edge_index).equal(plain(bucketed.x, bucketed.edge_index))
    assert not model._forward_hooks and not model._forward_pre_hooks


@pytest.mark.parametrize("name", MODELS)
def test_copies_and_pickles_have_quantizers_of_their_own(name, bucketed):
    model = MODELS[name]().eval()
    layout = quantized(model, bucketed, width=2)
    expected = model(bucketed.x, bucketed.edge_index)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other(bucketed.x, bucketed.edge_index).equal(expected)
        set_bit_widths(other, BitWidths(dict.fromkeys(layout.sizes, 8)))
        assert not other(bucketed.x, bucketed.edge_index).equal(expected)
        detach(other)
    assert model(bucketed.x, bucketed.edge_index).equal(expected)


@pytest.mark.filterwarnings("ignore")  # torch.compile warns at itself
@pytest.mark.parametrize("name", ["gat", "transformer"])
def test_a_compiled_model_quantizes_as_the_eager_one(name, bucketed):
    model = MODELS[name]().eval()
    quantized(model, bucketed, width=2)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    assert compiled(bucketed.x, bucketed.edge_index).allclose(
        model(bucketed.x, bucketed.edge_index)
    )


def test_the_state_dict_is_that_of_the_plain_model(bucketed):
    model = GCN(12, 3, 8)
    names = list(model.state_dict())
    quantized(model, bucketed)
    assert list(model.state_dict()) == names


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # in PyG's helper
def test_a_sparse_adjacency_changes_nothing(bucketed):
    model = Net(GCNConv(12, 8), SAGEConv(8, 3)).eval()
    quantized(model, bucketed, width=2)
    adjacency = to_torch_csr_tensor(bucketed.edge_index.flip(0), size=(60, 60))
    torch.testing.assert_close(
        model(bucketed.x, adjacency), model(bucketed.x, bucketed.edge_index)
    )


def test_dropped_features_stay_zero_though_zero_is_off_the_grid(graph):
    seen = []

    class Probe(GCNConv):
        def forward(self, x, edge_index):
            seen.append(x.detach())
            return super().forward(x, edge_index)

    graph.x = graph.x + 0.1  # a range that does not hold zero
    model = Net(Probe(12, 8), GCNConv(8, 3))
    quantized(model, graph, width=2, num_buckets=1)
    seen.clear()
    model.train()(graph.x, graph.edge_index)
    share = (seen[0] == 0).float().mean().item()
    assert 0.4 < share < 0.6
    # The kept values are the quantized ones times 1 / (1 - p), not clipped to the range.
    kept = (seen[0][seen[0] != 0] / 2).unique()
    assert len(kept) == 4
    assert kept.min() > 0.05


def test_a_bare_convolution_is_a_model_too(bucketed):
    conv = GCNConv(12, 3)
    layout = quantized(conv, bucketed)
    assert {site.layer for site in layout.sizes} == {"model"}


def test_layers_can_be_chosen(bucketed):
    model = GAT(12, 3, 16, heads=4)
    layout = quantized(model, bucketed, layers=["conv2"], attention=["conv1"])
    found = {(site.layer, site.component) for site in layout.sizes}
    assert found == {("conv2", "embedding"), ("conv1", "attention")}


def test_the_paper_settings_reach_every_quantizer(bucketed):
    model = GCN(12, 3, 8).eval()
    quantized(model, bucketed, width=1, config=QuantizerConfig.paper())
    assert model.conv1.feature_quantizer.quantizer.config == QuantizerConfig.paper()


def test_a_mini_batch_needs_its_own_buckets(bucketed):
    model = GCN(12, 3, 8).eval()
    quantized(model, bucketed)
    part = bucketed.subgraph(torch.arange(20))
    with pytest.raises(CalibrationError, match="expected the degree bucket of 20 rows, got 60"):
        model(part.x, part.edge_index)
    bind(model, part)
    assert model(part.x, part.edge_index).shape == (20, 3)


def test_a_model_without_message_passing_is_refused():
    with pytest.raises(ModelError, match="expected a model with message passing"):
        attach(nn.Linear(3, 3))


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(ModelError, match="layer 'conv9': expected one of conv1, conv2"):
        attach(GCN(12, 3), layers=["conv9"])


def test_a_layer_that_is_never_called_is_an_error(graph):
    model = GCN(12, 3)
    model.unused = nn.Linear(3, 3)
    attach(model)
    with pytest.raises(QuantizerBypassedError, match="unused/embedding"):
        calibrate(model, graph, candidates=(4,), forward=forward)


def test_a_quantizer_that_is_bypassed_later_is_an_error(graph):
    model = GCN(12, 3).eval()
    quantized(model, graph, num_buckets=1)
    model.conv2.forward = model.conv2.forward  # still through the hook
    model(graph.x, graph.edge_index)
    model.forward = lambda x, edge_index: model.conv1(x, edge_index)
    with pytest.raises(QuantizerBypassedError, match="bypassed the quantizer of conv2/embedding"):
        model(graph.x, graph.edge_index)


def test_a_failing_forward_pass_keeps_its_own_error(graph):
    model = GCN(12, 3)
    attach(model)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.rand(60, 5), graph.edge_index)
    assert not hasattr(F.dropout(graph.x), "_sgquant_before_dropout")  # nothing records any more


def test_a_graph_without_buckets_is_refused(graph):
    model = attach(GCN(12, 3), num_buckets=2)
    with pytest.raises(GraphError, match="column degree_bucket: expected one for each node"):
        calibrate(model, graph, candidates=(4,), forward=forward)
    graph.degree_bucket = torch.full((60,), 2)
    with pytest.raises(GraphError, match="expected values below 2, got 2"):
        bind(model, graph)


def test_widths_must_fit_the_sites(graph):
    model = GCN(12, 3)
    layout = quantized(model, graph, num_buckets=1)
    with pytest.raises(ModelError, match="expected one for site conv2/embedding"):
        set_bit_widths(model, BitWidths({Site("conv1", "embedding"): 4}))
    extra = {**dict.fromkeys(layout.sizes, 4), Site("conv3", "embedding"): 4}
    with pytest.raises(ModelError, match="the model has no site conv3/embedding"):
        set_bit_widths(model, BitWidths(extra))


def test_widths_before_calibration_are_refused():
    model = attach(GCN(12, 3))
    bits = BitWidths({Site("conv1", "embedding"): 4, Site("conv2", "embedding"): 4})
    with pytest.raises(CalibrationError, match="expected a calibrated model"):
        set_bit_widths(model, bits)


def test_quantizers_are_attached_once():
    model = attach(GCN(12, 3))
    with pytest.raises(ModelError, match="got one with quantizers"):
        attach(model)
    with pytest.raises(ModelError, match="got a plain GCN"):
        detach(GCN(12, 3))
