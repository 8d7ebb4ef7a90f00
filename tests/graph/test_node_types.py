"""Heterogeneous graphs at the doors: what is refused, and what degrees and hashes cover."""

import copy
import re

import pytest
import torch
from torch_geometric.data import HeteroData

import sgquant_optuna as sgq
from sgquant_optuna import tasks
from sgquant_optuna.exceptions import GraphError, ModelError
from sgquant_optuna.graph.degree_buckets import in_degrees
from sgquant_optuna.graph.fingerprint import graph_fingerprint
from tests.typed_graphs import five_nodes, transformed

PAPERS = tasks.node_classification(node_type="paper")


def test_a_degree_counts_the_edges_of_all_relations():
    degrees = in_degrees(five_nodes())
    assert {name: one.tolist() for name, one in degrees.items()} == {
        "paper": [1, 2, 1],
        "author": [1, 2],
    }
    bucketed = sgq.AddDegreeBuckets((2,))(five_nodes())
    assert bucketed["paper"].degree_bucket.tolist() == [0, 1, 0]
    assert bucketed["author"].degree_bucket.tolist() == [0, 1]


def without_features(data):
    del data["author"].x


def with_integers(data):
    data["author"].x = data["author"].x.long()


def with_nan(data):
    data["author"].x[0, 0] = torch.nan


def with_an_edge_too_far(data):
    data["paper", "of", "author"].edge_index[1, 0] = 2


def with_an_unknown_type(data):
    data["paper", "in", "venue"].edge_index = torch.zeros(2, 1, dtype=torch.long)


def without_labels(data):
    del data["paper"].y


def without_validation(data):
    data["paper"].val_mask[:] = False


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_features, "node type author: expected features x, or num_nodes"),
        (with_integers, "x of author: expected float features [N, F], got int64 [2, 5]; "),
        (with_nan, "x of author: expected finite numbers"),
        (
            with_an_edge_too_far,
            "edge_index of paper of author: expected nodes of author from 0",
        ),
        (with_an_unknown_type, "relation paper in venue: expected node types of the graph"),
        (without_labels, "column y: expected one, the graph has"),
        (without_validation, "column val_mask: expected at least one node, got none"),
    ],
)
def test_a_bad_graph_is_refused_with_the_name_of_the_type(spoil, message):
    data = five_nodes()
    model = transformed(data)
    spoil(data)
    with pytest.raises(GraphError, match=re.escape(message)):
        sgq.fit(model, data, task=PAPERS)


def test_a_task_of_another_node_type_is_refused():
    data = five_nodes()
    with pytest.raises(GraphError, match="node_type: expected one of 'paper', 'author', got"):
        tasks.regression(node_type="venue").check(data)
    with pytest.raises(GraphError, match=r"node_classification\(node_type='paper'\)"):
        sgq.fit(transformed(data), data)
    one_type = sgq.load_graph("digits")
    with pytest.raises(GraphError, match="HeteroData for a task with node_type='paper'"):
        PAPERS.check(one_type)


def test_a_model_that_cannot_do_without_features_of_a_type_names_it():
    data = five_nodes()
    model = transformed(data)
    del data["author"].x
    data["author"].num_nodes = 2
    with pytest.raises(ModelError, match="no features of node type author"):
        sgq.fit(model, data, task=PAPERS)


def test_a_model_of_other_metadata_names_the_relation_that_the_graph_lacks():
    data = five_nodes()
    model = transformed(data)
    del data["paper", "cites", "paper"]
    with pytest.raises(ModelError, match="no edges of relation paper__cites__paper, which the gr"):
        sgq.fit(model, data, task=PAPERS)


def broken(x_dict, edge_index_dict):
    raise TypeError("of the user")


def test_an_error_of_the_model_itself_is_not_hidden(monkeypatch):
    data = five_nodes()
    model = transformed(data)
    monkeypatch.setattr(model, "forward", broken)
    with pytest.raises(TypeError, match="of the user"):
        sgq.fit(model, data, task=PAPERS)


class Embedded(torch.nn.Module):
    """Takes authors without features as rows of a table."""

    def __init__(self, data):
        super().__init__()
        self.authors = torch.nn.Embedding(2, 5)
        self.inner = transformed(data)

    def forward(self, x_dict, edge_index_dict):
        return self.inner({**x_dict, "author": self.authors.weight}, edge_index_dict)


def test_a_type_without_features_may_have_an_embedding_in_the_model():
    data = five_nodes()
    model = Embedded(data)
    del data["author"].x
    data["author"].num_nodes = 2
    objective_data = PAPERS.without_test(data)
    sgq.fit(model, data, sgq.TrainingConfig(epochs=1), task=PAPERS)
    layout = sgq.calibrate(
        sgq.attach(model),
        objective_data,
        candidates=(8,),
        forward=lambda model, data: model(data.x_dict, data.edge_index_dict)["paper"],
    )
    assert [site.layer for site in layout.sizes][:2] == ["inner.conv1.author", "inner.conv1.paper"]


def test_test_labels_of_the_node_type_are_hidden():
    data = five_nodes()
    stripped = PAPERS.without_test(data)
    assert stripped["paper"].y.tolist() == [0, 1, -1]
    assert "test_mask" not in stripped["paper"]
    assert data["paper"].y.tolist() == [0, 1, 0]


def test_the_fingerprint_covers_all_types_and_relations():
    def printed(data):
        return graph_fingerprint(data, PAPERS.columns, "paper")

    data = five_nodes()
    known = printed(data)
    assert known == printed(five_nodes())
    assert known["features"] == {"paper": 4, "author": 5}
    for change in (
        lambda one: one["author"].x.add_(1),
        lambda one: one["paper", "cites", "paper"].edge_index.zero_(),
        lambda one: one["paper"].y.fill_(1),
    ):
        other = copy.deepcopy(data)
        change(other)
        assert printed(other)["hash"] != known["hash"]
    renamed = HeteroData()
    for name in data.node_types:
        renamed[name].update(data[name].to_dict())
    for relation in data.edge_types:
        source, word, target = relation
        key = (source, "quotes" if word == "cites" else word, target)
        renamed[key].edge_index = data[relation].edge_index
    assert printed(renamed)["hash"] != known["hash"]


def test_the_relation_of_an_edge_is_part_of_the_fingerprint():
    data = sgq.load_graph("digits")
    data.edge_type = torch.zeros(data.num_edges, dtype=torch.long)
    known = graph_fingerprint(data, ())
    data.edge_type = data.edge_type + 1
    assert graph_fingerprint(data, ()) != known
