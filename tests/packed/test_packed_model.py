import itertools

import pytest
import torch
from torch import nn
from torch_geometric.nn import GIN, GATv2Conv, GraphSAGE, TransformerConv

from sgquant_optuna.attachment.calibration import calibrate
from sgquant_optuna.attachment.quantized_model import attach, set_bit_widths
from sgquant_optuna.exceptions import GraphError, QuantizerBypassedError
from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.graph.paper_models import AGNN, GAT, GCN
from sgquant_optuna.packed import message_passing, packed_tensor
from sgquant_optuna.packed.export import export_packed, load_packed
from sgquant_optuna.packed.model_file import ModelContents
from sgquant_optuna.packed.packed_tensor import PackedTensor
from sgquant_optuna.quantization.memory import honest_memory
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.study.search_space import BitWidthSearchSpace
from tests.conftest import make_graph

WIDTHS = (1, 3, 4, 8, 16, 32)


class TwoConvs(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x, edge_index):
        return self.second(self.first(x, edge_index).relu(), edge_index)


MODELS = {
    "gcn": lambda: GCN(12, 3, hidden_channels=8),
    "agnn": lambda: AGNN(12, 3, hidden_channels=8),
    "gat": lambda: GAT(12, 3, hidden_channels=8, heads=4),
    "sage": lambda: GraphSAGE(12, 8, num_layers=2, out_channels=3),
    "gin": lambda: GIN(12, 8, num_layers=2, out_channels=3),
    "gatv2": lambda: TwoConvs(GATv2Conv(12, 4, heads=2, residual=True), GATv2Conv(8, 3)),
    "transformer": lambda: TwoConvs(TransformerConv(12, 4, heads=2), TransformerConv(8, 3)),
}
BUILT_IN = ("gcn", "agnn", "gat")


def graph_of(sparse):
    graph = make_graph()
    if sparse:
        generator = torch.Generator().manual_seed(1)
        keep = torch.rand(graph.x.shape, generator=generator) < 0.1
        graph.x = keep * (1 + torch.rand(graph.x.shape, generator=generator))
    return graph


# Multiple of 1 / count and share of non-zeros at which a store is the smallest one. Products run
# on the non-zeros alone in the first.
DIVIDED = {"sparse 1/count": (1, 0.1), "sparse row codebook": (3, 0.3)}


def divided_graph(store):
    """Binary features whose rows are divided by their sums, and multiplied."""
    graph, (numerator, density) = make_graph(), DIVIDED[store]
    generator = torch.Generator().manual_seed(1)
    rows = (torch.rand(graph.x.shape, generator=generator) < density).float()
    graph.x = numerator * (rows / rows.sum(dim=1, keepdim=True).clamp(min=1))
    return graph


def quantized(name, graph, *, granularity="lwq+cwq+taq", axis="tensor", widths=WIDTHS):
    """A fake-quantized model of mixed widths, its graph, its layout and its scores."""
    edges = (2, 4) if "taq" in granularity or axis == "bucket" else ()
    if edges:
        graph = AddDegreeBuckets(edges)(graph)
    torch.manual_seed(1)
    model = attach(MODELS[name](), config=QuantizerConfig(axis=axis), num_buckets=len(edges) + 1)
    fixed = FixedGraph(graph)
    with fixed.speed_up(model) as fast:
        layout = calibrate(model, fast, candidates=widths, forward=forward)
        space = BitWidthSearchSpace(layout.sizes, granularity=granularity, candidates=widths)
        choice = itertools.cycle(widths)
        bits = space.from_params({parameter: next(choice) for parameter in space.names})
        set_bit_widths(model, bits)
        with torch.no_grad():
            scores = forward(model.eval(), fast)
    return model, fixed.data, layout, scores, bits


def assert_same(found, scores, *, tolerance=1e-5):
    """Compare scores; some processors round a product by the number of its rows."""
    assert torch.allclose(found, scores, rtol=0, atol=tolerance * float(scores.abs().max()))
    assert torch.equal(found.argmax(1), scores.argmax(1))


def check_same(name, tmp_path, graph=None, **options):
    graph = graph_of(options.pop("sparse", False)) if graph is None else graph
    model, data, layout, scores, bits = quantized(name, graph, **options)
    export_packed(model, data, tmp_path / "m", layout=layout)
    packed = load_packed(tmp_path / "m", None if name in BUILT_IN else MODELS[name]())
    found = packed(graph.edge_index)
    assert_same(found, scores)
    assert packed.bit_widths == bits
    assert sum(packed.stored_nbytes.values()) == honest_memory(layout, bits).memory_bytes
    return packed, ModelContents.read(tmp_path / "m")


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_and_bytes_are_those_of_the_fake_quantized_model(name, sparse, tmp_path):
    check_same(name, tmp_path, sparse=sparse)


@pytest.mark.parametrize(
    "granularity", ["uniform", "lwq", "cwq", "taq", "lwq+cwq", "lwq+taq", "cwq+taq"]
)
def test_every_granularity_packs(granularity, tmp_path):
    check_same("gat", tmp_path, granularity=granularity, widths=(4, 32, 16, 2))


@pytest.mark.parametrize("axis", ["bucket", "column", "row"])
@pytest.mark.parametrize("name", ["gcn", "agnn"])
def test_every_axis_of_ranges_packs(name, axis, tmp_path):
    check_same(name, tmp_path, axis=axis, sparse=name == "gcn", widths=(4, 16, 32))


@pytest.mark.parametrize("store", DIVIDED)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("agnn", {"widths": (32, 2), "granularity": "lwq+cwq"}),
        ("sage", {"widths": (32, 2), "granularity": "lwq+cwq"}),
        ("gcn", {"widths": (1, 4), "axis": "row"}),  # each width is lossless; degree buckets
    ],
)
def test_binary_rows_divided_by_their_sums_are_held_exactly(name, options, store, tmp_path):
    graph = divided_graph(store)
    packed, contents = check_same(name, tmp_path, graph, **options)
    site = contents.header.sites[0]
    stores = {site.store(number)[0] for number in site.sizes}
    assert stores - {"sparse row values", "codebook"} == {store}  # of buckets of few rows
    assert site.sparse == (store == "sparse 1/count")
    features = contents.input_of(site)
    assert torch.equal(PackedTensor(features).dense(), graph.x)
    index = torch.tensor([59, 0, 7, 7])
    assert torch.equal(features.rows(index), graph.x[index])
    assert torch.equal(packed(graph), packed(graph.edge_index))


def test_features_of_other_values_at_the_same_places_are_not_exported(tmp_path):
    model, data, layout, *_ = quantized("gcn", divided_graph("sparse 1/count"), widths=(32, 2))
    data.x = data.x * 3
    with pytest.raises(GraphError, match="expected rows of equal non-zeros for sparse 1/count"):
        export_packed(model, data, tmp_path / "m", layout=layout)


@pytest.mark.parametrize("name", ["gat", "agnn", "sage", "gatv2"])
def test_blocks_of_few_edges_give_the_same_scores(name, tmp_path, monkeypatch):
    for module, names in {
        message_passing: ("ATTENTION_EDGES", "EDGE_VALUES"),
        packed_tensor: ("BLOCK_VALUES",),
    }.items():
        for block in names:
            monkeypatch.setattr(module, block, 5)
    check_same(name, tmp_path)


def test_the_file_needs_neither_features_nor_labels(tmp_path):
    model, data, layout, scores, _ = quantized("gcn", make_graph())
    export_packed(model, data, tmp_path / "m", layout=layout)
    bare = make_graph()
    del bare.x, bare.y
    assert_same(load_packed(tmp_path / "m")(bare), scores)


def test_another_graph_is_refused(tmp_path):
    model, data, layout, *_ = quantized("gcn", make_graph())
    export_packed(model, data, tmp_path / "m", layout=layout)
    packed = load_packed(tmp_path / "m")
    for other in (make_graph(seed=1), data.edge_index.flip(1), data.edge_index[:, 1:]):
        with pytest.raises(GraphError, match="the one that the model was packed for"):
            packed(other)
    edges = data.edge_index.clone()
    packed(edges)
    edges[0, 0] = (edges[0, 0] + 1) % 60  # in place: the same tensor is not the same graph
    with pytest.raises(GraphError, match="hash"):
        packed(edges)


def test_a_layer_that_is_not_reached_is_noticed(tmp_path):
    model, data, layout, *_ = quantized("gcn", make_graph())
    export_packed(model, data, tmp_path / "m", layout=layout)
    packed = load_packed(
        tmp_path / "m", forward=lambda model, data: model.conv1(data.x, data.edge_index)
    )
    with pytest.raises(QuantizerBypassedError, match="conv2"):
        packed(data)


def test_it_stays_in_evaluation_mode(tmp_path):
    model, data, layout, scores, _ = quantized("gat", make_graph())
    export_packed(model, data, tmp_path / "m", layout=layout)
    packed = load_packed(tmp_path / "m").train()
    assert_same(packed(data), scores)
    assert not any(parameter.requires_grad for parameter in packed.parameters())
