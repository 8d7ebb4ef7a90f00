"""Models of every kind are exported and loaded: equal scores, the bytes of the accounting."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import (
    BatchNorm,
    GATConv,
    GATv2Conv,
    GCNConv,
    GINConv,
    GraphConv,
    Linear,
    SAGEConv,
    Sequential,
)
from torch_geometric.transforms import ToSparseTensor

from sgquant_optuna.attachment.calibrated_model import CalibratedModel
from sgquant_optuna.exceptions import ModelError, PackingError
from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.graph.training import fit
from sgquant_optuna.graph.training_config import TrainingConfig
from sgquant_optuna.packed.container import read_container
from sgquant_optuna.packed.export import export_packed, load_packed
from sgquant_optuna.quantization.memory import honest_memory
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.sites import BitWidths
from sgquant_optuna.search.objective import QuantizationObjective
from tests.conftest import make_graph
from tests.packed.test_packed_model import DIVIDED, divided_graph, graph_of


class Model(nn.Module):
    """Two layers and what happens around them, given as functions of the model."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x, edge_index):
        return self.run(self, x, edge_index)


def two(m, x, edge_index):
    return m.second(m.first(x, edge_index).relu(), edge_index)


def convs(conv=GCNConv, inputs=12):
    return {"first": conv(inputs, 8), "second": conv(8, 3)}


def after(change):
    """A model whose first layer takes what is made of x."""
    return lambda: Model(lambda m, x, edge_index: two(m, change(m, x), edge_index), **convs())


def with_norm(norm, conv=GCNConv):
    return lambda: Model(lambda m, x, e: two(m, m.norm(x), e), norm=norm(), **convs(conv))


def weight_normed(norm, where):
    def build():
        model = Model(two, **convs())
        owner = model.get_submodule(where)
        norm(owner)
        return model

    return build


def tied():
    model = Model(
        lambda m, x, e: m.second(m.twin(m.middle(m.first(x, e).relu(), e), e), e),
        **convs(),
        middle=GCNConv(8, 8),
        twin=GCNConv(8, 8),
    )
    model.twin.lin.weight = model.middle.lin.weight
    return model


# Functions here, so that two instances of one kind differ in nothing.
def skip(m, x, e):
    return m.second(torch.cat([m.first(x, e).relu(), x], dim=1), e)


def add(m, x, e):
    return m.first(x, e) + x


def back_to_x(m, x, e):
    return two(m, x, e) + x[:, :3]


def unquantized(m, x, e):
    return two(m, torch.sparse.mm(torch.eye(len(x)).to_sparse(), x), e)


CONSTANT = {
    "batch norm": with_norm(lambda: nn.BatchNorm1d(12)),
    "batch norm of PyG": with_norm(lambda: BatchNorm(12)),
    "layer norm": with_norm(lambda: nn.LayerNorm(12), SAGEConv),
    "normalised": after(lambda m, x: F.normalize(x, dim=1)),
    "divided by its sums": after(lambda m, x: x / x.sum(dim=1, keepdim=True).clamp(min=1.0)),
    "there and back": after(lambda m, x: x.double().float()),
    "scaled in two branches": lambda: Model(
        lambda m, x, e: m.second(m.first(x * 2, e) + m.other(x * 3, e), e),
        **convs(),
        other=SAGEConv(12, 8),
    ),
}
SAME = {
    "float": after(lambda m, x: x.float()),
    "to": after(lambda m, x: x.to(torch.float32)),
    "to the type of weights": after(lambda m, x: x.to(m.first.lin.weight.dtype)),
    "contiguous": after(lambda m, x: x.contiguous()),
}
EXACT = {
    "concatenated": lambda: Model(skip, first=GCNConv(12, 8), second=GCNConv(20, 3)),
    "added": lambda: Model(add, first=GCNConv(12, 12)),
    "columns used at the end": lambda: Model(back_to_x, **convs()),
    "through a product": lambda: Model(unquantized, **convs()),
    "norm of the batch": lambda: Model(
        lambda m, x, e: two(m, (x - x.mean(dim=0)) / float(x.std()), e), **convs()
    ),
}
WEIGHTS = {
    "tied": tied,
    "shared weights of attention": lambda: Model(
        two, first=GATv2Conv(12, 4, heads=2, share_weights=True), second=GATv2Conv(8, 3)
    ),
    "weight norm": weight_normed(torch.nn.utils.parametrizations.weight_norm, "first.lin"),
    "old weight norm": weight_normed(torch.nn.utils.weight_norm, "first.lin"),
    "spectral norm": weight_normed(torch.nn.utils.parametrizations.spectral_norm, "first.lin"),
    "lazy convolutions": lambda: Model(two, first=GCNConv(-1, 8), second=GCNConv(-1, 3)),
    "lazy pairs": lambda: Model(two, first=SAGEConv((-1, -1), 8), second=GraphConv(-1, 3)),
    "lazy linear": lambda: Model(
        lambda m, x, e: m.out(m.norm(m.first(x, e)).relu()),
        first=GINConv(nn.Sequential(nn.LazyLinear(8), nn.ReLU())),
        norm=nn.LazyBatchNorm1d(),
        out=nn.LazyLinear(3),
    ),
    "lazy linear of PyG": lambda: Model(
        lambda m, x, e: m.out(m.first(m.enter(x).relu(), e).relu()),
        enter=Linear(-1, 8),
        first=SAGEConv(8, 8),
        out=Linear(-1, 3),
    ),
    "sequential with functions": lambda: Sequential(
        "x, edge_index",
        [
            (GCNConv(12, 8), "x, edge_index -> h"),
            (lambda h: h.relu(), "h -> h"),
            (lambda h: h * 2, "h -> h"),
            (GCNConv(8, 3), "h, edge_index -> h"),
        ],
    ),
}
SHARED = {
    "called twice": lambda: Model(
        lambda m, x, e: m.second(m.middle(m.middle(m.first(x, e), e).relu(), e), e),
        **convs(),
        middle=GCNConv(8, 8),
    ),
    "called with x and then with hidden features": lambda: Model(
        lambda m, x, e: m.second(m.first(m.first(x, e).relu(), e), e),
        first=GCNConv(12, 12),
        second=GCNConv(12, 3),
    ),
    "called with x and a part of it": lambda: Model(
        lambda m, x, e: m.second(m.first(x, e) + m.first(x / 2, e), e), **convs()
    ),
    "attention called twice": lambda: Model(
        lambda m, x, e: m.second(m.middle(m.middle(m.first(x, e), e).relu(), e), e),
        **convs(),
        middle=GATConv(8, 4, heads=2),
    ),
    "linear called twice": lambda: Model(
        lambda m, x, e: m.second(m.middle(m.middle(m.first(x, e).relu()).relu()), e),
        **convs(),
        middle=nn.Linear(8, 8),
    ),
    "two sets of edges": lambda: Model(
        lambda m, x, e: m.second(m.first(x, e), e) + m.second(m.first(x, e.flip(0)), e.flip(0)),
        **convs(SAGEConv),
    ),
}
KINDS = CONSTANT | SAME | EXACT | WEIGHTS | SHARED


def by_place(model, data):
    """PyG's Sequential takes no arguments by name."""
    return model(data.x, data.edge_index)


def packed_and_expected(
    build, graph, tmp_path, *, widths=(2, 8), axis="tensor", buckets=1, forward=forward
):
    torch.manual_seed(0)
    model = build()
    forward(model, graph)  # sets sizes of lazy layers, and statistics
    fixed = FixedGraph(graph)
    made = CalibratedModel(
        model.eval(),
        fixed,
        candidates=widths,
        quantizer=QuantizerConfig(axis=axis),
        num_buckets=buckets,
        layers=None,
        attention=None,
        forward=forward,
    )
    chosen = [widths[number % len(widths)] for number in range(len(made.layout.sizes))]
    bits = BitWidths(dict(zip(made.layout.sizes, chosen, strict=True)))
    quantized = made.quantized(bits)
    expected = made.scores(quantized)
    exported = export_packed(quantized, graph, tmp_path / "m", layout=made.layout, forward=forward)
    packed = load_packed(tmp_path / "m", build(), forward=forward)
    return packed, expected, exported, honest_memory(made.layout, bits)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:Lazy:UserWarning")
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_bytes_are_those_of_the_quantized_model(kind, sparse, tmp_path):
    graph = graph_of(sparse)
    packed, expected, exported, memory = packed_and_expected(
        KINDS[kind], graph, tmp_path, forward=by_place
    )
    for given in (graph, graph.edge_index):  # x is not read
        found = packed(given)
        assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert sum(packed.stored_nbytes.values()) == exported.stored_nbytes == memory.memory_bytes
    assert bool(exported.exact_nbytes) == (kind in EXACT)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:Lazy:UserWarning")
@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_trial_of_such_weights_is_trained_and_exported(kind, tmp_path):
    graph, build, training = make_graph(), WEIGHTS[kind], TrainingConfig(epochs=3)
    torch.manual_seed(0)
    model = build()
    by_place(model, graph)
    fit(model, graph, training, forward=by_place)
    objective = QuantizationObjective(model, graph, forward=by_place, finetuning=training)
    bits = BitWidths(dict.fromkeys(objective.layout.sizes, 4))
    tuned, _ = objective.finetune(bits, seed=0)
    export_packed(
        tuned, objective.graph.data, tmp_path / "m", layout=objective.layout, forward=by_place
    )
    found = load_packed(tmp_path / "m", build(), forward=by_place)(graph)
    assert torch.allclose(found, objective.models[0].scores(tuned), rtol=0, atol=1e-5)


@pytest.mark.parametrize("axis", ["tensor", "bucket", "column", "row"])
@pytest.mark.parametrize("kind", ["batch norm", "concatenated", "float"])
def test_degree_buckets_and_axes_of_ranges_fit_every_use_of_x(kind, axis, tmp_path):
    graph = AddDegreeBuckets((2, 4))(make_graph())
    packed, expected, _, memory = packed_and_expected(
        KINDS[kind], graph, tmp_path, widths=(4, 32, 2), axis=axis, buckets=3
    )
    assert torch.allclose(packed(graph), expected, rtol=0, atol=1e-5)
    assert sum(packed.stored_nbytes.values()) == memory.memory_bytes


def test_exact_features_are_not_stored_twice(tmp_path):
    graph = make_graph()
    packed, expected, exported, _ = packed_and_expected(
        EXACT["concatenated"], graph, tmp_path, widths=(32, 4)
    )
    assert exported.exact_nbytes == packed.exact_nbytes == 0
    assert torch.equal(packed(graph), expected)
    _, tensors = read_container(tmp_path / "m", "packed_model")
    assert not any(name.startswith("exact.") for name in tensors)


@pytest.mark.parametrize("store", DIVIDED)
def test_exact_features_of_one_value_a_row_are_stored_so(store, tmp_path):
    graph = divided_graph(store)
    packed, expected, exported, _ = packed_and_expected(
        EXACT["concatenated"], graph, tmp_path, widths=(2, 4)
    )
    fields, _ = read_container(tmp_path / "m", "packed_model")
    assert fields["features"]["exact"]["store"] == store
    assert exported.exact_nbytes == packed.exact_nbytes > 0
    assert torch.equal(packed(graph), expected)


def test_what_is_made_of_x_alone_is_stored_at_its_bit_width(tmp_path):
    # 60 rows of 12 values: 2 bits take 3 bytes a row, and one range 8.
    packed_and_expected(CONSTANT["normalised"], make_graph(), tmp_path)
    fields, tensors = read_container(tmp_path / "m", "packed_model")
    assert fields["features"]["constant"] == {"first/embedding": [0]}
    assert tensors["constant.first/embedding.0"].nbytes == 60 * 3
    assert sum(t.nbytes for name, t in tensors.items() if "first/embedding" in name) == 60 * 3 + 8


@pytest.mark.parametrize("kind", ["tied", "shared weights of attention"])
def test_tied_weights_are_stored_once_and_tied_again(kind, tmp_path):
    packed, *_ = packed_and_expected(WEIGHTS[kind], make_graph(), tmp_path)
    fields, tensors = read_container(tmp_path / "m", "packed_model")
    assert fields["tied"]
    for name, first in fields["tied"].items():
        assert f"weights.{name}" not in tensors and f"weights.{first}" in tensors
        assert packed.model.get_parameter(name) is packed.model.get_parameter(first)


class Table(nn.Module):
    """A model whose input is a table of its own: the graph's x is not used, or picks rows."""

    def __init__(self, picks):
        super().__init__()
        self.picks, self.table = picks, nn.Embedding(60, 12)
        self.first, self.second = GCNConv(12, 8), GCNConv(8, 3)

    def forward(self, x, edge_index):
        x = self.table(x) if self.picks else self.table.weight
        return self.second(self.first(x, edge_index).relu(), edge_index)


@pytest.mark.parametrize("picks", [False, True], ids=["whole table", "rows of it"])
def test_an_embedding_table_is_packed_as_the_input(picks, tmp_path):
    graph = make_graph()
    graph.x = torch.arange(60) if picks else None
    graph.num_nodes = 60

    def build():
        return Table(picks)

    packed, expected, _, memory = packed_and_expected(
        build, graph, tmp_path, forward=lambda m, data: m(data.x, data.edge_index)
    )
    assert torch.allclose(packed(graph.edge_index), expected, rtol=0, atol=1e-5)
    assert sum(packed.stored_nbytes.values()) == memory.memory_bytes


@pytest.mark.parametrize(
    ("build", "graph", "message"),
    [
        (SAME["float"], lambda g: g.update({"x": g.x.double()}), None),
        (
            lambda: EXACT["added"]().double(),
            lambda g: g.update({"x": g.x.double()}),
            "Model: expected float32 weights, got float64 in first.bias; .* model.float",
        ),
        (
            lambda: Model(lambda m, x, e: two(m, x.float(), e) + x[:, :3].float(), **convs()),
            lambda g: g.update({"x": g.x.double()}),
            r"x: expected float32 \[N, F\] where the model uses it outside .* data.x.float",
        ),
        (
            lambda: Model(lambda m, x, e: two(m, x.mul_(1), e), **convs()),
            lambda g: g,
            "expected an operation that does not change them, got mul_",
        ),
        (
            lambda: Model(lambda m, x, e: two(m, x + torch.rand(60, 12), e), **convs()),
            lambda g: g,
            "expected the scores of the fake-quantized one to a relative 0.0001, got",
        ),
    ],
    ids=["float64 cast", "float64", "float64 x", "changed in place", "random"],
)
def test_a_model_that_cannot_be_packed_is_refused_by_name(build, graph, message, tmp_path):
    data = graph(make_graph())
    if message is None:
        packed, expected, *_ = packed_and_expected(build, data, tmp_path)
        assert torch.allclose(packed(data), expected, rtol=0, atol=1e-5)
        return
    with pytest.raises((ModelError, PackingError, TypeError), match=message):
        packed_and_expected(build, data, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_edges_of_another_graph_that_a_convolution_cached_are_forgotten(tmp_path):
    graph, other = make_graph(), make_graph(seed=1)

    def build():
        model = Model(two, first=GCNConv(12, 8, cached=True), second=GCNConv(8, 3, cached=True))
        model(other.x, other.edge_index)
        return model

    def fresh():
        return Model(two, first=GCNConv(12, 8, cached=True), second=GCNConv(8, 3, cached=True))

    _, expected, *_ = packed_and_expected(fresh, graph, tmp_path)
    found = load_packed(tmp_path / "m", build())(graph)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("conv", [GCNConv, SAGEConv, GraphConv, GATConv])
def test_a_graph_that_has_a_sparse_adjacency_alone_is_packed(conv, tmp_path):
    graph = ToSparseTensor(layout=torch.sparse_csr)(make_graph())
    assert "edge_index" not in graph

    def build():
        return Model(two, **convs(conv))

    packed, expected, _, memory = packed_and_expected(
        build, graph, tmp_path, forward=lambda m, data: m(data.x, data.adj_t)
    )
    assert torch.allclose(packed(graph), expected, rtol=0, atol=1e-5)
    assert sum(packed.stored_nbytes.values()) == memory.memory_bytes
