"""What training and measuring are given is checked as the search checks it, in its words."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GCNConv

from sgquant_optuna.exceptions import GraphError, ModelError
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.paper_models import GCN
from sgquant_optuna.graph.tasks import task
from sgquant_optuna.graph.training import accuracy, fit
from sgquant_optuna.graph.training_config import TrainingConfig
from sgquant_optuna.search.objective import QuantizationObjective
from tests.conftest import make_graph

ONE_EPOCH = TrainingConfig(epochs=1)


def with_value(value: float) -> torch.Tensor:
    x = torch.ones(60, 12)
    x[3, 4] = value
    return x


COLUMNS = {
    "int x": ("x", torch.ones(60, 12).long(), "data.x = data.x.float()"),
    "bool x": ("x", torch.ones(60, 12).bool(), "data.x = data.x.float()"),
    "complex x": ("x", torch.ones(60, 12).to(torch.complex64), "got complex64"),
    "no x": ("x", None, "expected one, the graph has"),
    "x of another kind": ("x", "features", "column x: expected a tensor, got a str"),
    "NaN": ("x", with_value(torch.nan), "expected finite numbers, got NaN or infinity"),
    "infinity": ("x", with_value(-torch.inf), "expected finite numbers, got NaN or infinity"),
    "absurd x": ("x", with_value(3e38), "up to 5e+18, whose squares can be added up, got 3e+38;"),
    "absurd negative x": ("x", with_value(-1e30), "got 1e+30; scale the features"),
    "absurd sparse x": ("x", torch.eye(60, 12) * 3e38, "got 3e+38; scale the features"),
    "column of labels": ("y", torch.zeros(60, 1).long(), "data.y = data.y.flatten()"),
    "int32 labels": ("y", torch.zeros(60).int(), "data.y = data.y.flatten().long()"),
    "float labels": ("y", torch.zeros(60, 1), "data.y = data.y.flatten().long() if these are"),
    "one-hot labels": ("y", torch.zeros(60, 3), "data.y = data.y.argmax(dim=1) if each row"),
    "edges out of range": ("edge_index", torch.tensor([[0], [60]]), "nodes from 0 to 59, got 0"),
    "int32 edges": ("edge_index", torch.ones(2, 4).int(), "data.edge_index.long()"),
    "no edges": ("edge_index", None, "column edge_index: expected one"),
}
MASKS = {
    "ten splits": (
        "train_mask",
        torch.ones(60, 10).bool(),
        "got bool [60, 10]; it holds 10 splits: choose one by split=0 (--split 0) or "
        "choose_split(data, 0), or search on all of them by split='all'",
    ),
    "no validation mask": ("val_mask", None, "random_split() makes masks"),
    "numbers of nodes": ("val_mask", torch.arange(20), "index_to_mask() of PyG for numbers"),
    "no node": ("train_mask", torch.zeros(60).bool(), "expected at least one node, got none"),
}


@pytest.mark.parametrize("case", [*COLUMNS, *MASKS])
def test_fit_and_accuracy_refuse_what_the_search_refuses_in_its_words(case, graph):
    name, value, message = (COLUMNS | MASKS)[case]
    mask = graph.test_mask
    if value is None:
        del graph[name]
    else:
        graph[name] = value
    calls = [
        lambda: QuantizationObjective(GCN(12, 3), graph),
        lambda: fit(GCN(12, 3), graph, ONE_EPOCH),
        lambda: fit(GCN(12, 3), FixedGraph(graph), ONE_EPOCH),
    ]
    if case in COLUMNS:
        calls.append(lambda: accuracy(GCN(12, 3), graph, mask))
    told = []
    for call in calls:
        with pytest.raises(GraphError) as error:
            call()
        told.append(str(error.value))
    assert message in told[0] and "\n" not in told[0]
    assert set(told) == {told[0]}


class Graphs(Dataset):
    def __getitem__(self, index):
        return make_graph()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (HeteroData(), r"got a HeteroData; name the node type .*\(node_type="),
        (Graphs(), "got a Graphs; take one of its graphs, or join them with tasks.joined_graphs"),
        (None, "got None; make one with"),
        ((1, 2), "got a tuple; make one with"),
    ],
)
def test_what_is_no_graph_is_refused(given, message, graph):
    for call in (
        lambda: fit(GCN(12, 3), given),
        lambda: accuracy(GCN(12, 3), given, graph.val_mask),
        lambda: QuantizationObjective(GCN(12, 3), given),
    ):
        with pytest.raises(GraphError, match=message):
            call()


def test_the_columns_of_a_graph_are_checked_once(graph, monkeypatch):
    fixed, calls = FixedGraph(graph), []
    check = task.check_features_and_edges
    monkeypatch.setattr(
        task, "check_features_and_edges", lambda data: calls.append(1) or check(data)
    )
    for _ in range(3):
        fit(GCN(12, 3), fixed, ONE_EPOCH)
    assert len(calls) == 1


@pytest.mark.parametrize("is_sparse", [False, True])
def test_a_graph_of_other_features_than_the_models_is_refused(is_sparse, graph):
    graph.x = torch.eye(60, 10) if is_sparse else torch.ones(60, 10)
    message = r"GCN: expected a model for the 10 features of the graph, got one of other sizes"
    with pytest.raises(ModelError, match=message) as error:
        fit(GCN(12, 3), graph, ONE_EPOCH)
    assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match=message):
        accuracy(GCN(12, 3), graph, graph.val_mask)


def test_an_error_of_the_model_itself_stays_as_it_is(graph):
    class Fails(GCN):
        def forward(self, x, edge_index):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="^mine$"):
        fit(Fails(12, 3), graph, ONE_EPOCH)


def test_a_label_above_the_scores_is_named(graph):
    graph.y[graph.val_mask.nonzero()[0]] = 7
    with pytest.raises(ModelError, match=r"float32 \[60, 3\]; the largest label is 7"):
        fit(GCN(12, 3), graph, ONE_EPOCH)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(60, 10).bool(), r"bool \[60\], got bool \[60, 10\]; choose one of its splits"),
        (torch.arange(20), r"expected a mask bool \[60\], got int64 \[20\]"),
    ],
)
def test_accuracy_needs_a_mask_of_all_nodes(mask, message, graph):
    with pytest.raises(ValueError, match=message):
        accuracy(GCN(12, 3), graph, mask)


def test_accuracy_needs_classes(graph):
    graph.y[graph.test_mask] = -1
    with pytest.raises(GraphError, match="expected a class for each node of the mask, got -1"):
        accuracy(GCN(12, 3), graph, graph.test_mask)


def test_smaller_and_larger_numbers_than_float32_are_fine():
    graph = make_graph()
    for dtype in (torch.bfloat16, torch.float64):
        other = Data(**{**graph.to_dict(), "x": graph.x.to(dtype)})
        model = nn.Sequential(GCNConv(12, 3)).to(dtype)
        assert fit(model[0], other, ONE_EPOCH).epochs == 1
