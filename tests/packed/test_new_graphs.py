"""A packed model on graphs that it has not seen: equal to fake quantization, bytes counted."""

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GCNConv, GINConv, SAGEConv, global_add_pool
from torch_geometric.transforms import ToSparseTensor

from sgquant_optuna.attachment.calibration import calibrate
from sgquant_optuna.attachment.quantized_model import attach, bind, set_bit_widths
from sgquant_optuna.exceptions import GraphError, PackingError
from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.forward_pass import columns, forward
from sgquant_optuna.packed.container import read_container, write_container
from sgquant_optuna.packed.export import export_packed, load_packed
from sgquant_optuna.packed.model_file import KIND
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.sites import BitWidths
from tests.conftest import make_graph
from tests.packed.test_any_model import CONSTANT, EXACT, Model, two
from tests.packed.test_packed_model import (
    BUILT_IN,
    DIVIDED,
    MODELS,
    assert_same,
    divided_graph,
    graph_of,
    quantized,
)

EDGES = (2, 4)  # those of `quantized`


@torch.no_grad()
def fake(model, data, call=forward):
    """Outputs of the fake-quantized model on a graph, as an objective calls it."""
    fixed = FixedGraph(data)
    with fixed.speed_up(model) as fast:
        bind(model, fast)
        return call(model.eval(), fast)


def bucketed(graph, edges=EDGES):
    return AddDegreeBuckets(edges)(graph.clone())


def exported(name, path, graph=None, *, with_features=False, **options):
    """A fake-quantized model and the packed one of its file."""
    graph = make_graph() if graph is None else graph
    model, data, layout, *_ = quantized(name, graph, **options)
    edges = EDGES if layout.num_buckets > 1 else None
    export_packed(
        model, data, path, layout=layout, with_features=with_features, degree_edges=edges
    )
    return model, load_packed(path, None if name in BUILT_IN else MODELS[name]())


class Sum(nn.Module):
    """Features added up over the incoming edges; no weight changes them."""

    def __init__(self):
        super().__init__()
        self.conv = SAGEConv(1, 1, aggr="sum", root_weight=False, bias=False)
        self.conv.lin_l.weight.data.fill_(1.0)

    def forward(self, x, edge_index):
        return self.conv(x, edge_index)


def by_hand(path, *, buckets):
    """Calibrate on values from 0 to 3: at 2 bits, code and value are the same number."""
    x, edges = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), [[0, 1, 2, 2], [1, 2, 3, 1]]
    data = Data(x=x, edge_index=torch.tensor(edges))
    if buckets > 1:
        data = AddDegreeBuckets((2,))(data)
    model = attach(Sum(), config=QuantizerConfig(range_estimator="minmax"), num_buckets=buckets)
    config = {"candidates": (1, 2), "forward": forward}
    layout = calibrate(model, data, **config)
    widths = {site: 1 if site.bucket == 1 else 2 for site in layout.sizes}
    set_bit_widths(model, BitWidths(widths))
    export_packed(
        model,
        data,
        path,
        layout=layout,
        with_features=False,
        degree_edges=(2,) if buckets > 1 else None,
    )
    return load_packed(path, Sum())


def test_four_nodes_by_hand(tmp_path):
    packed = by_hand(tmp_path / "m", buckets=1)
    # Rounded to 0, 1, 2 and 3: values above 3 and below 0 get the ends of the range.
    data = Data(
        x=torch.tensor([[-5.0], [0.9], [1.6], [70.0]]),
        edge_index=torch.tensor([[0, 1, 3, 2], [1, 2, 2, 0]]),
    )
    there = packed.on(data)
    assert there(data).tolist() == [[2.0], [0.0], [4.0], [0.0]]
    # 4 rows of a code of 2 bits, each a whole byte; one range of 8 bytes.
    assert there.stored_nbytes == {"conv/embedding": 4 + 8, "bucket ids": 0}
    assert there.memory.memory_bytes == 12 and there.memory.full_precision_bytes == 16
    assert torch.equal(packed(data), there(data))
    assert torch.equal(packed(data.x, data.edge_index), there(data))


def test_a_node_has_the_bucket_of_its_degree_by_hand(tmp_path):
    packed = by_hand(tmp_path / "m", buckets=2)
    # Node 0 has two edges, so one bit: 0 or 3; 1.9 is nearer to 3. The others have 2 bits.
    data = Data(
        x=torch.tensor([[1.9], [0.9], [2.2], [1.2], [0.4]]),
        edge_index=torch.tensor([[0, 1, 2, 3], [1, 0, 0, 4]]),
    )
    assert packed(data).tolist() == [[1.0 + 2.0], [3.0], [0.0], [0.0], [1.0]]
    # Its own bucket counts where it has one, as in a part of a larger graph.
    data.degree_bucket = torch.tensor([0, 0, 1, 0, 0])
    assert packed(data).tolist() == [[1.0 + 3.0], [2.0], [0.0], [0.0], [1.0]]


def test_the_file_holds_neither_graph_nor_features(tmp_path):
    _, packed = exported("gcn", tmp_path / "alone")
    _, whole = exported("gcn", tmp_path / "whole", with_features=True)
    fields, tensors = read_container(tmp_path / "alone", KIND)
    assert "edges" not in fields and fields["degree_edges"] == list(EDGES)
    assert {name.split(".")[0] for name in tensors} == {"weights", "scale", "zero_point"}
    with pytest.raises(RuntimeError, match=r"packed\.on"):
        packed.stored_nbytes  # noqa: B018
    data = make_graph()
    assert torch.equal(packed(data), whole(data))
    assert packed.on(data).exact_nbytes == 0
    with pytest.raises(GraphError, match="column x: expected one"):
        packed(data.edge_index)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("with_features", [False, True], ids=["alone", "whole"])
@pytest.mark.parametrize("name", MODELS)
def test_new_graphs_get_the_outputs_of_the_fake_quantized_model(
    name, with_features, sparse, tmp_path
):
    model, packed = exported(name, tmp_path / "m", graph_of(sparse), with_features=with_features)
    for seed, nodes in ((1, 60), (2, 25), (3, 140)):
        data = make_graph(num_nodes=nodes, seed=seed)
        data.x = data.x * (3 * (torch.rand(data.x.shape) < 0.1) if sparse else 1.3) - 0.0
        there = packed.on(data)
        found = there(data)
        assert_same(found, fake(model, bucketed(data)))
        assert torch.equal(there(data.edge_index), found)
        assert sum(there.stored_nbytes.values()) == there.memory.memory_bytes
        assert there.layout.num_nodes == nodes


@pytest.mark.parametrize("store", DIVIDED)
@pytest.mark.parametrize("axis", ["tensor", "bucket", "column"])
def test_a_graph_of_lossless_features_runs_on_others(store, axis, tmp_path):
    model, packed = exported(
        "gcn", tmp_path / "m", divided_graph(store), axis=axis, widths=(1, 4), with_features=True
    )
    for data in (make_graph(seed=4), divided_graph("sparse row codebook")):
        data.edge_index = make_graph(seed=5).edge_index
        there = packed.on(data)
        assert_same(there(data), fake(model, bucketed(data)))
        assert sum(there.stored_nbytes.values()) == there.memory.memory_bytes


@pytest.mark.parametrize("kind", CONSTANT | EXACT)
def test_what_is_made_of_x_is_made_of_that_of_the_new_graph(kind, tmp_path):
    build = (CONSTANT | EXACT)[kind]
    graph, other = make_graph(), make_graph(num_nodes=40, seed=1)
    torch.manual_seed(0)
    model = attach(build())
    layout = calibrate(model, graph, candidates=(4,), forward=forward)
    set_bit_widths(model, BitWidths(dict.fromkeys(layout.sizes, 4)))
    export_packed(model, graph, tmp_path / "m", layout=layout, with_features=False)
    there = load_packed(tmp_path / "m", build()).on(other)
    before = other.x.clone()
    assert_same(there(other), fake(model, other))
    assert torch.equal(other.x, before)
    assert (there.exact_nbytes > 0) == (kind in EXACT)
    assert sum(there.stored_nbytes.values()) == there.memory.memory_bytes


def test_exact_features_that_a_layer_held_without_loss_are_stored_where_it_does_not(tmp_path):
    build, graph = EXACT["concatenated"], make_graph()
    graph.x = (graph.x > 0.7).float()  # a bit holds each value
    torch.manual_seed(0)
    model = attach(build())
    layout = calibrate(model, graph, candidates=(1,), forward=forward)
    set_bit_widths(model, BitWidths(dict.fromkeys(layout.sizes, 1)))
    export_packed(model, graph, tmp_path / "m", layout=layout, with_features=False)
    packed, other = load_packed(tmp_path / "m", build()), make_graph(seed=1)
    for data, nbytes in ((graph, 0), (other, 4 * other.x.numel())):
        there = packed.on(data)
        assert_same(there(data), fake(model, data))
        assert there.exact_nbytes == nbytes


@pytest.mark.parametrize("config", [{"rounding": "floor"}, {"range_estimator": "percentile"}])
def test_other_settings_of_the_quantizers_hold_on_new_graphs(config, tmp_path):
    graph, other = make_graph(), make_graph(num_nodes=90, seed=7)
    torch.manual_seed(0)
    model = attach(MODELS["gat"](), config=QuantizerConfig(**config))
    layout = calibrate(model, graph, candidates=(2,), forward=forward)
    set_bit_widths(model, BitWidths(dict.fromkeys(layout.sizes, 2)))
    export_packed(model, graph, tmp_path / "m", layout=layout, with_features=False)
    assert_same(load_packed(tmp_path / "m")(other), fake(model, other))


def test_the_features_of_a_graph_may_be_freed_once_they_are_packed(tmp_path):
    _, packed = exported("gcn", tmp_path / "m")
    data = make_graph(seed=1)
    there, expected = packed.on(data), packed(data)
    del data.x
    assert torch.equal(there(data), expected)
    assert torch.equal(there(data.edge_index.clone()), expected)


def test_two_graphs_take_turns(tmp_path):
    model, packed = exported("gat", tmp_path / "m", with_features=True)
    first, second = make_graph(seed=1), make_graph(num_nodes=30, seed=2)
    on_first, on_second = packed.on(first), packed.on(second)
    for _ in range(2):
        assert_same(on_first(first), fake(model, bucketed(first)))
        assert_same(on_second(second), fake(model, bucketed(second)))
        assert_same(packed(make_graph()), fake(model, bucketed(make_graph())))
    with pytest.raises(GraphError, match="the one that the model was packed for"):
        on_first(second)
    with pytest.raises(GraphError, match=r"packed\.on\(graph\) runs it on another"):
        packed(second)
    assert packed.layout.num_nodes == 60 and on_second.layout.num_nodes == 30


def without_edges(graph):
    graph.edge_index = torch.empty(2, 0, dtype=torch.long)
    return graph


def of_isolated_nodes(graph):
    graph.edge_index = graph.edge_index[:, (graph.edge_index[1] < 10)]
    return graph


def of_one_node(graph):
    return Data(x=graph.x[:1], edge_index=torch.empty(2, 0, dtype=torch.long))


@pytest.mark.parametrize("change", [without_edges, of_isolated_nodes, of_one_node])
@pytest.mark.parametrize("name", MODELS)
def test_empty_buckets_and_nodes_without_edges(name, change, tmp_path):
    model, packed = exported(name, tmp_path / "m")
    data = change(make_graph(seed=1))
    there = packed.on(data)
    found, expected = there(data), fake(model, bucketed(data))
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert sum(there.stored_nbytes.values()) == there.memory.memory_bytes
    if change is without_edges:
        buckets = {site.bucket for site in there.layout.sizes if site.component == "embedding"}
        assert buckets == {0}


def test_a_bucket_that_was_empty_at_calibration_is_refused_as_by_the_quantized_model(tmp_path):
    ring = torch.stack([torch.arange(60), torch.arange(60).roll(1)])
    graph = make_graph()
    graph.edge_index = torch.cat([ring, ring[:, :20] + 0, ring.flip(0)[:, :20]], dim=1)
    assert bucketed(graph).degree_bucket.max() == 1
    _, packed = exported("gcn", tmp_path / "m", graph)
    with pytest.raises(GraphError, match="conv1/embedding: degree bucket 2 had no nodes at calib"):
        packed(make_graph())


@pytest.mark.parametrize("made", ["coo", "csr", "mostly zero"])
def test_sparse_features_are_those_of_dense_ones(made, tmp_path):
    model, packed = exported("sage", tmp_path / "m", graph_of(sparse=True))
    data = graph_of(sparse=True)
    data.edge_index = make_graph(seed=3).edge_index
    expected = fake(model, bucketed(data))
    if made != "mostly zero":
        data.x = data.x.to_sparse_coo() if made == "coo" else data.x.to_sparse_csr()
    assert_same(packed(data), expected)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize("name", ["gcn", "sage", "gin"])
def test_a_new_graph_may_have_a_sparse_adjacency_alone(name, tmp_path):
    model, packed = exported(name, tmp_path / "m", granularity="lwq")
    data = make_graph(seed=3)
    data.edge_index = data.edge_index[:, data.edge_index[0] != data.edge_index[1]]
    expected = packed(data)
    sparse = ToSparseTensor(layout=torch.sparse_csr)(data.clone())
    assert "edge_index" not in sparse
    assert_same(packed(sparse), expected, tolerance=1e-4)
    assert_same(packed(sparse), fake(model, sparse))


def test_weights_of_edges_and_other_columns_are_those_of_the_new_graph(tmp_path):
    call = columns("x", "edge_index", "edge_weight")
    graph, other = make_graph(), make_graph(num_nodes=40, seed=1)
    for one in (graph, other):
        one.edge_weight = torch.rand(one.num_edges, generator=torch.Generator().manual_seed(2))

    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = GCNConv(12, 8), GCNConv(8, 3)

        def forward(self, x, edge_index, edge_weight):
            h = self.first(x, edge_index, edge_weight).relu()
            return self.second(h, edge_index, edge_weight)

    model = attach(Weighted())
    layout = calibrate(model, graph, candidates=(4,), forward=call)
    set_bit_widths(model, BitWidths(dict.fromkeys(layout.sizes, 4)))
    path = tmp_path / "m"
    export_packed(model, graph, path, layout=layout, forward=call, with_features=False)
    packed = load_packed(path, Weighted(), forward=call)
    assert_same(packed(other), fake(model, other, call))
    other.edge_weight = other.edge_weight[:-1]
    with pytest.raises(GraphError, match="column edge_weight: expected one row for each of"):
        packed(other)


class Molecules(nn.Module):
    """One output for each graph of a union, through a layer whose rows are graphs."""

    def __init__(self, outputs):
        super().__init__()
        self.conv1 = GINConv(nn.Sequential(nn.Linear(12, 8), nn.ReLU()))
        self.conv2, self.head = GCNConv(8, 8), nn.Linear(8, outputs)

    def forward(self, x, edge_index, batch):
        h = self.conv2(self.conv1(x, edge_index), edge_index).relu()
        return self.head(global_add_pool(h, batch)).squeeze(1)


@pytest.mark.parametrize("outputs", [1, 3], ids=["regression", "classification"])
@pytest.mark.parametrize("buckets", [1, 3])
def test_new_graphs_as_a_list_or_a_batch(outputs, buckets, tmp_path):
    def graphs(seed, count):
        made = [make_graph(num_nodes=8 + n, seed=seed + n) for n in range(count)]
        return [Data(x=one.x, edge_index=one.edge_index) for one in made]

    def union(given):
        return bucketed(Batch.from_data_list(given))

    torch.manual_seed(0)
    model, train = attach(Molecules(outputs), num_buckets=buckets), union(graphs(0, 10))
    layout = calibrate(model, train, candidates=(2, 4), forward=forward)
    set_bit_widths(model, BitWidths({s: 2 if s.bucket else 4 for s in layout.sizes}))
    export_packed(
        model,
        train,
        tmp_path / "m",
        layout=layout,
        with_features=False,
        degree_edges=EDGES if buckets > 1 else None,
    )
    packed = load_packed(tmp_path / "m", Molecules(outputs))
    new = graphs(50, 4)
    expected = fake(model, union(new))
    assert expected.shape == ((4,) if outputs == 1 else (4, 3))
    for given in (new, Batch.from_data_list(new)):
        there = packed.on(given)
        assert torch.allclose(there(given), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(packed(given), there(given))
        assert sum(there.stored_nbytes.values()) == there.memory.memory_bytes
    alone = torch.cat([packed([one]) for one in new])
    assert torch.allclose(alone, expected, rtol=1e-5, atol=1e-6)


def changed(**columns):
    data = make_graph(seed=1)
    for name, value in columns.items():
        data[name] = value(data) if callable(value) else value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: changed(x=torch.rand(60, 11)), r"column x: .* float32 \[N, 12\], got \[60, 11\]"),
        (lambda: changed(x=torch.rand(60)), r"column x: .* float32 \[N, 12\], got \[60\]"),
        (
            lambda: changed(x=lambda data: data.x.double()),
            r"column x: expected float32 .*, got float64; data.x = data.x.to\(torch.float32\)",
        ),
        (lambda: changed(x=lambda data: data.x.long()), "column x: expected float32 .* int64"),
        (lambda: changed(x=lambda data: data.x / 0), "column x: expected finite numbers"),
        (lambda: changed(x=torch.rand(0, 12)), "column x: .* at least one node"),
        (lambda: Data(edge_index=make_graph().edge_index), "column x: expected one"),
        (lambda: Data(x=make_graph().x), "column edge_index: expected one"),
        (
            lambda: changed(edge_index=lambda data: data.edge_index + 1),
            "column edge_index: expected nodes from 0 to 59, got 1 to 60",
        ),
        (
            lambda: changed(edge_index=lambda data: data.edge_index.int()),
            r"column edge_index: expected int64 \[2, E\], got int32",
        ),
        (
            lambda: changed(degree_bucket=torch.zeros(59, dtype=torch.long)),
            r"column degree_bucket: expected int64 \[60\], got int64 \[59\]",
        ),
        (
            lambda: changed(degree_bucket=torch.full((60,), 3)),
            "column degree_bucket: expected 0 to 2, got 3 to 3",
        ),
        (lambda: [], "graphs: expected at least one"),
        (lambda: [make_graph().x], "graph: expected torch_geometric.data.Data, got a Tensor"),
        (lambda: {"x": 1}, "graph: expected torch_geometric.data.Data, got a dict"),
    ],
)
def test_a_graph_that_does_not_fit_is_refused_by_its_column(data, message, tmp_path):
    _, packed = exported("gcn", tmp_path / "m")
    for call in (packed, packed.on):
        with pytest.raises(GraphError, match=message) as caught:
            call(data())
        assert "\n" not in str(caught.value)


def test_without_degree_edges_a_new_graph_brings_its_buckets(tmp_path):
    model, data, layout, *_ = quantized("gcn", make_graph())
    export_packed(model, data, tmp_path / "m", layout=layout, with_features=False)
    packed, other = load_packed(tmp_path / "m"), make_graph(seed=1)
    with pytest.raises(GraphError, match="column degree_bucket: expected one of 3 .*degree_edges"):
        packed(other)
    assert_same(packed(bucketed(other)), fake(model, bucketed(other)))


@pytest.mark.parametrize(
    ("edges", "error", "message"),
    [
        ((2,), GraphError, "degree_edges: expected 2, .* got 1"),
        ((2, 5), GraphError, r"degree_edges: expected those .* got \(2, 5\), by which \d+ nodes"),
        ((4, 2), ValueError, "degree edges: expected positive integers in rising order"),
    ],
)
def test_degree_edges_of_other_buckets_are_not_exported(edges, error, message, tmp_path):
    model, data, layout, *_ = quantized("gcn", make_graph())
    with pytest.raises(error, match=message):
        export_packed(model, data, tmp_path / "m", layout=layout, degree_edges=edges)
    assert not (tmp_path / "m").exists()


def test_ranges_of_single_nodes_fit_no_other_graph(tmp_path):
    model, data, layout, *_ = quantized("gcn", make_graph(), axis="row", granularity="lwq")
    with pytest.raises(GraphError, match="conv1/embedding: expected ranges that fit any graph"):
        export_packed(model, data, tmp_path / "m", layout=layout, with_features=False)
    export_packed(model, data, tmp_path / "m", layout=layout)
    packed = load_packed(tmp_path / "m")
    with pytest.raises(GraphError, match="a range for each node"):
        packed.on(make_graph(seed=1))
    assert packed(data).shape == (60, 3)


def test_a_file_of_an_older_version_says_that_it_lacks_ranges(tmp_path):
    exported(
        "gcn", tmp_path / "m", divided_graph("sparse 1/count"), widths=(4,), with_features=True
    )
    fields, tensors = read_container(tmp_path / "m", KIND)
    older = {n: t.clone() for n, t in tensors.items() if "conv1/embedding" not in n[:24]}
    kept = {n: t.clone() for n, t in tensors.items() if n.startswith("input.")}
    write_container(tmp_path / "m", KIND, fields, {**older, **kept})
    packed = load_packed(tmp_path / "m")
    packed(make_graph())
    with pytest.raises(GraphError, match="conv1/embedding: the file holds .* export it again"):
        packed.on(make_graph())


@pytest.mark.parametrize("value", [5, [4, 2], [2], [2.5, 4], [2, 10**30], [2, 0]])
def test_degree_edges_of_a_header_are_checked(value, tmp_path):
    exported("gcn", tmp_path / "m")
    fields, tensors = read_container(tmp_path / "m", KIND)
    copied = {name: tensor.clone() for name, tensor in tensors.items()}
    write_container(tmp_path / "m", KIND, {**fields, "degree_edges": value}, copied)
    with pytest.raises(PackingError, match="degree edge"):
        load_packed(tmp_path / "m")


def test_a_model_of_two_layers_by_function_is_its_own_on_each_graph(tmp_path):
    def build():
        return Model(two, first=GCNConv(12, 8), second=GCNConv(8, 3))

    graph, other = make_graph(), make_graph(num_nodes=33, seed=6)
    torch.manual_seed(0)
    model = attach(build())
    layout = calibrate(model, graph, candidates=(3,), forward=forward)
    set_bit_widths(model, BitWidths(dict.fromkeys(layout.sizes, 3)))
    done = export_packed(model, graph, tmp_path / "m", layout=layout, with_features=False)
    packed = load_packed(tmp_path / "m", build())
    assert done.file_nbytes == (tmp_path / "m").stat().st_size
    assert done.stored_nbytes == packed.memory.memory_bytes  # those of the calibration
    assert_same(packed.on(other)(other), fake(model, other))
