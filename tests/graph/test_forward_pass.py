import copy
import logging
import pickle

import pytest
import torch
from torch import nn
from torch_geometric.nn import GAT, GCNConv, Sequential
from torch_geometric.utils import to_torch_csr_tensor

import sgquant_optuna as sgq
from sgquant_optuna.exceptions import ModelError
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.graph.paper_models import GCN
from sgquant_optuna.graph.training import accuracy, fit
from sgquant_optuna.graph.training_config import TrainingConfig

ONE_EPOCH = TrainingConfig(epochs=1)


def returning(value):
    """A model that returns what a function makes of its features."""

    class Returns(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(12, 3)

        def forward(self, x, edge_index):
            return value(self.lin(x))

    return Returns()


class Peeks(nn.Module):
    """Looks at whatever it is given beside features and edges."""

    def forward(self, x, edge_index, y=None, train_mask=None, edge_weight=None, extra=None):
        return [y, train_mask, edge_weight, extra]


def test_labels_masks_and_optional_columns_are_not_passed(graph):
    graph.edge_weight = torch.ones(graph.num_edges)
    graph.extra = torch.ones(60)
    assert forward(Peeks(), graph) == [None] * 4


def test_labels_in_an_optional_parameter_do_not_train_a_model(graph):
    class Leaky(GCN):
        def forward(self, x, edge_index, y=None):
            scores = super().forward(x, edge_index)
            return scores if y is None else scores + 9 * nn.functional.one_hot(y.clamp(min=0), 3)

    graph.y = torch.randint(3, (60,), generator=torch.manual_seed(0))
    model = Leaky(12, 3)
    assert fit(model, graph, ONE_EPOCH).accuracy < 70
    assert fit(model, graph, ONE_EPOCH, forward=sgq.columns("x", "edge_index", "y")).accuracy > 90


def test_an_optional_column_is_passed_once_it_is_named_and_told_of_once(graph, caplog):
    class Weighted(nn.Module):
        def forward(self, x, edge_index, edge_weight=None):
            return edge_weight

    graph.edge_weight = torch.ones(graph.num_edges)
    with caplog.at_level(logging.WARNING):
        assert forward(Weighted(), graph) is None
        assert forward(Weighted(), graph) is None
    assert [record.getMessage() for record in caplog.records] == [
        "Weighted.forward has an optional edge_weight and the graph has that column, which is not "
        'passed; to pass it, say forward=columns("x", "edge_index", "edge_weight")'
    ]
    call = sgq.columns("x", "edge_index", "edge_weight")
    assert call(Weighted(), graph) is graph.edge_weight


def test_columns_are_a_value(graph):
    call = sgq.columns("x", "edge_index", other="y")
    same = sgq.columns("x", "edge_index", other="y")
    assert call == same and hash(call) == hash(same)
    assert pickle.loads(pickle.dumps(call)) == copy.deepcopy(call) == call
    assert call != sgq.columns("x", "edge_index")


def test_a_column_may_go_to_a_parameter_of_another_name(graph):
    class Other(nn.Module):
        def forward(self, features, edges):
            return features, edges

    call = sgq.columns(features="x", edges="edge_index")
    assert call(Other(), graph) == (graph.x, graph.edge_index)
    with pytest.raises(ModelError, match=r"Other.forward needs features, .*columns\(features="):
        forward(Other(), graph)
    with pytest.raises(ModelError, match="Other.forward has no parameter x, it has edges, feat"):
        sgq.columns("x", edges="edge_index")(Other(), graph)
    with pytest.raises(
        ModelError, match="columns: expected nothing in the graph, it has edge_index, "
    ):
        sgq.columns(features="nothing", edges="edge_index")(Other(), graph)


@pytest.mark.parametrize(("names", "renamed"), [((), {}), ((3,), {}), (("x",), {"x": "y"})])
def test_columns_need_names(names, renamed):
    with pytest.raises(ValueError, match="columns: expected"):
        sgq.columns(*names, **renamed)


@pytest.mark.parametrize("parameter", ["y", "labels", "mask", "train_mask", "test_mask"])
def test_a_model_that_requires_labels_or_a_mask_is_refused_unless_they_are_named(parameter, graph):
    names = {"f": None}
    exec(f"def f(self, x, edge_index, {parameter}): return {parameter}", names)
    model = type("Requires", (nn.Module,), {"forward": names["f"]})()
    graph[parameter] = graph.y
    with pytest.raises(ModelError, match=f"without a default, got {parameter}; if it may see"):
        forward(model, graph)
    assert sgq.columns("x", "edge_index", parameter)(model, graph) is graph.y


def test_a_required_column_is_passed_whatever_it_is(graph):
    class Needs(nn.Module):
        def forward(self, x, edge_index, edge_attr):
            return edge_attr

    graph.edge_attr = torch.ones(graph.num_edges, 2)
    assert forward(Needs(), graph) is graph.edge_attr


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # PyG makes the matrix
def test_a_sparse_matrix_takes_the_place_of_an_edge_list(graph):
    class Sparse(GCN):
        def forward(self, x, adj_t):
            return super().forward(x, adj_t)

    expected = forward(GCN(12, 3).eval(), graph).shape
    graph.adj_t = to_torch_csr_tensor(graph.edge_index.flip(0), size=(60, 60))
    assert forward(Sparse(12, 3), graph).shape == expected
    del graph.edge_index
    for model in (Sparse(12, 3), GCN(12, 3)):
        assert fit(model, graph, ONE_EPOCH).epochs == 1


def test_the_sequential_container_of_pyg_is_called_with_features_and_edges(graph):
    model = Sequential("x, edge_index", [(GCNConv(12, 3), "x, edge_index -> x")])
    assert forward(model, graph).shape == (60, 3)
    assert sgq.columns("x", "edge_index")(model, graph).shape == (60, 3)
    assert fit(model, graph, ONE_EPOCH).epochs == 1


def test_whole_models_of_pyg_are_called(graph):
    graph.edge_attr = torch.ones(graph.num_edges, 2)
    assert forward(GAT(12, 8, 2, 3), graph).shape == (60, 3)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (lambda scores: (scores, scores), "got a tuple of 2; return the scores alone"),
        (lambda scores: {"scores": scores}, "got a dict of 1; return the scores alone"),
        (lambda scores: None, "got None; return the scores alone"),
        (lambda scores: scores.to(torch.complex64), r"complex64 \[60, 3\]; return real numbers"),
        (lambda scores: scores.argmax(1), r"int64 \[60\]; return real numbers"),
        (lambda scores: scores[:, 0], r"float32 \[60\]; return a row for each node"),
        (lambda scores: scores[:7], r"float32 \[7, 3\]; return a row for each node"),
        (lambda scores: scores[None], r"float32 \[1, 60, 3\]; return a row for each node"),
        (lambda scores: scores[:, :2], r"float32 \[60, 2\]; the largest label is 2"),
    ],
)
def test_what_is_no_score_of_each_class_is_refused_in_one_line(value, got, graph):
    model = returning(value)
    for call in (
        lambda: fit(model, graph, ONE_EPOCH),
        lambda: accuracy(model, graph, graph.val_mask),
    ):
        with pytest.raises(ModelError, match=got) as error:
            call()
        assert str(error.value).startswith(
            "Returns: expected class scores, float [60, 3 or more], got "
        )
        assert "\n" not in str(error.value)


def test_more_scores_than_classes_are_fine(graph):
    assert fit(GCN(12, 9), graph, ONE_EPOCH).epochs == 1
