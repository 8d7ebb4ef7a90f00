import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

from sgquant_optuna.exceptions import ModelError
from sgquant_optuna.graph import training_config
from sgquant_optuna.graph.datasets import GRAPH_NAMES
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.graph.paper_models import AGNN, GAT, GCN, MODELS, make_model
from sgquant_optuna.graph.training import accuracy, fit
from sgquant_optuna.graph.training_config import (
    PAPER_MODELS,
    PaperTraining,
    TrainingConfig,
    paper_training,
)

PAGE = Path(__file__).parents[2] / "docs/full-precision.md"


@pytest.mark.parametrize("name", MODELS)
def test_the_papers_models_learn(name, graph):
    model = make_model(name, 12, 3)
    result = fit(model, graph, paper_training(name, "digits").training, seed=0)
    assert result.accuracy > 80
    assert accuracy(model, graph, graph.test_mask) > 70
    assert not model.training


def test_the_models_are_those_of_the_paper():
    gcn, agnn, gat = GCN(100, 7), AGNN(100, 7), GAT(100, 7)
    assert gcn.conv1.out_channels == 32
    assert [agnn.lin1.out_features, len(agnn.props), agnn.lin2.in_features] == [16, 2, 16]
    assert gat.conv1.heads * gat.conv1.out_channels == 256


def test_the_model_keeps_its_best_validation_weights(graph):
    model = GCN(12, 3, 8)
    result = fit(model, graph, TrainingConfig(epochs=15), seed=0)
    assert accuracy(model, graph, graph.val_mask) == pytest.approx(result.accuracy)


def test_training_never_ends_worse_than_it_began(graph):
    model = GCN(12, 3, 8)
    fit(model, graph, TrainingConfig(epochs=40), seed=0)
    before = accuracy(model, graph, graph.val_mask)
    config = TrainingConfig(epochs=5, learning_rate=50.0)  # ruins the weights
    assert fit(model, graph, config, seed=0).accuracy == pytest.approx(before)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state(graph):
    model = GCN(12, 3, 8)
    copies = [copy.deepcopy(model) for _ in range(3)]
    state = torch.random.get_rng_state()
    results = [
        fit(one, graph, TrainingConfig(epochs=5), seed=seed)
        for one, seed in zip(copies, (1, 1, 2), strict=True)
    ]
    assert torch.random.get_rng_state().equal(state)
    assert results[0].losses == results[1].losses != results[2].losses


def test_it_stops_when_nothing_gets_better(graph):
    model = GCN(12, 3, 8)
    fit(model, graph, TrainingConfig(epochs=100), seed=0)
    result = fit(model, graph, TrainingConfig(epochs=100, patience=4), seed=0)
    assert result.epochs < 100


def test_a_loss_that_is_not_finite_ends_training_with_the_best_until_then(graph):
    class Broken(GCN):
        def forward(self, x, edge_index):
            scores = super().forward(x, edge_index)
            return scores * torch.nan if self.training else scores

    model = Broken(12, 3, 8)
    weights = copy.deepcopy(model.state_dict())
    result = fit(model, graph, TrainingConfig(epochs=10), seed=0)
    assert result.epochs == 1
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())


def test_test_nodes_are_never_looked_at(graph):
    other = graph.clone()
    other.y = torch.where(graph.test_mask, -1, graph.y)
    del other.test_mask
    one, two = GCN(12, 3, 8), None
    two = copy.deepcopy(one)
    config = TrainingConfig(epochs=5)
    assert fit(one, graph, config, seed=0) == fit(two, other, config, seed=0)


def test_accuracy_of_nothing_is_an_error(graph):
    with pytest.raises(ValueError, match="expected a mask with at least one node"):
        accuracy(GCN(12, 3), graph, torch.zeros(60, dtype=torch.bool))


@pytest.mark.parametrize(
    "options",
    [
        *({"epochs": -1}, {"patience": 0}, {"learning_rate": 0.0}, {"weight_decay": -1.0}),
        {"decayed_layers": "last"},
    ],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="training: expected"):
        TrainingConfig(**options)


@pytest.mark.parametrize(("layers", "second"), [("first", 1.0), ("all", 0.99)])
def test_the_penalty_is_that_of_the_layers_it_is_for(layers, second):
    # Features of 0 leave the penalty as the only gradient of weights 1; Adam's first step is the
    # learning rate, whatever the size of the gradient.
    nodes = torch.tensor([True, False])
    graph = Data(
        x=torch.zeros(2, 3),
        edge_index=torch.tensor([[0, 1], [1, 0]]),
        y=torch.zeros(2, dtype=torch.long),
        train_mask=nodes,
        val_mask=~nodes,
    )
    model = GCN(3, 2, 4)
    nn.init.ones_(model.conv1.lin.weight)
    nn.init.ones_(model.conv2.lin.weight)
    config = TrainingConfig(epochs=1, learning_rate=0.01, decayed_layers=layers)
    assert fit(model, graph, config).epochs == 1
    assert model.conv1.lin.weight.detach().numpy() == pytest.approx(0.99)
    assert model.conv2.lin.weight.detach().numpy() == pytest.approx(second)
    assert model.conv2.bias.tolist() == pytest.approx([0.01, -0.01])  # towards class 0


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="model: expected one of gcn, agnn, gat, got 'gin'"):
        make_model("gin", 3, 3)


def test_the_table_of_trainings_names_models_and_graphs_there_are():
    assert {*PAPER_MODELS} == {*MODELS}
    assert {graph for _, graph in training_config._CHOSEN} < {*GRAPH_NAMES}
    assert paper_training("gcn", "CORA") == paper_training("gcn", "Cora")
    with pytest.raises(ValueError, match="model: expected one of gcn, agnn, gat, got 'gin'"):
        paper_training("gin", "Cora")


def settings_of(cell: str) -> PaperTraining:
    """Read the last cell of a row of the page, as in ``rows normalised, 500 epochs``."""
    words = {
        "epochs": r"(\d+) epochs",
        "learning_rate": r"rate (\S+)",
        "weight_decay": r"decay (\S+)",
    }
    found = {name: re.search(pattern, cell) for name, pattern in words.items()}
    values = {name: float(match[1].rstrip(",")) for name, match in found.items() if match}
    return PaperTraining(
        normalize_features="rows normalised" in cell, training=TrainingConfig(**values)
    )


def test_the_page_of_full_precision_tells_the_settings_of_each_row():
    assert settings_of("rows normalised, 300 epochs, rate 0.005, decay 0.001") == PaperTraining(
        normalize_features=True,
        training=TrainingConfig(epochs=300, learning_rate=0.005, weight_decay=0.001),
    )
    row = r"^\| (\w+), (\w+)[^|]* \|(?:[^|]*\|){4} ([^|]*) \|$"  # of six cells, settings last
    rows = re.findall(row, PAGE.read_text(), flags=re.MULTILINE)
    assert {(model.lower(), graph) for model, graph, _ in rows} >= {*training_config._CHOSEN}
    for model, graph, cell in rows:
        assert settings_of(cell) == paper_training(model.lower(), graph), (model, graph)


class TestForward:
    def test_a_model_may_take_the_graph_itself(self, graph):
        class Whole(nn.Module):
            def forward(self, data):
                return data.x

        assert forward(Whole(), graph) is graph.x

    def test_a_missing_column_is_named(self, graph):
        class Needs(nn.Module):
            def forward(self, x, edge_attr):
                return x

        with pytest.raises(ModelError, match="Needs.forward needs edge_attr"):
            forward(Needs(), graph)

    @pytest.mark.parametrize("conv", [GCNConv, SAGEConv, GATConv])
    def test_a_convolution_alone_can_be_called(self, conv, graph):
        assert forward(conv(12, 3), graph).shape == (60, 3)
