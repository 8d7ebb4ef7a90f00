"""A packed model on graphs that it has not seen: equal to fake quantization, bytes counted."""

import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import SAGEConv

from sgquant_optuna.attachment.calibration import calibrate
from sgquant_optuna.attachment.quantized_model import attach, bind, set_bit_widths
from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.packed.container import read_container
from sgquant_optuna.packed.export import export_packed, load_packed
from sgquant_optuna.packed.model_file import KIND
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.sites import BitWidths
from tests.conftest import make_graph
from tests.packed.test_any_model import CONSTANT, EXACT
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
    # Whether a row is zero, 4 times 1 bit; 4 codes of 2 bits; one range of 8 bytes.
    assert there.stored_nbytes == {"conv/embedding": 1 + 1 + 8, "bucket ids": 0}
    assert there.memory.memory_bytes == 10 and there.memory.full_precision_bytes == 16
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
