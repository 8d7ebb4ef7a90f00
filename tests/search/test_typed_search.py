"""Whole searches on graphs of several node types or relations."""

import pytest
import torch
from torch import nn
from torch_geometric.nn import FastRGCNConv, RGCNConv

import sgquant_optuna as sgq
from sgquant_optuna import tasks
from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.training_config import TrainingConfig
from tests.small_search import searched
from tests.typed_graphs import attending, by_relation, library, transformed, transformer

PAPERS = tasks.node_classification(node_type="paper")


@pytest.mark.parametrize("make", [transformed, by_relation, transformer, attending])
def test_a_search_on_several_node_types_goes_the_whole_way(make, tmp_path):
    data = library()
    model = make(data)
    result = sgq.fit(model, data, TrainingConfig(epochs=40), task=PAPERS)
    assert result.losses[-1] < result.losses[0] / 2
    study, objective = searched(model, data, PAPERS, tmp_path, n_trials=3)
    final = sgq.final_report(study, objective, data, seeds=2)
    assert 0 <= final.quantized_test[0] <= 100
    text = str(sgq.report(study))
    for site in objective.layout.sizes:
        assert site.layer in text
    assert {"author", "paper"} <= {site.layer.split(".")[-1] for site in objective.layout.sizes}
    done = sgq.export_study(study, tmp_path / "m.sgq", objective=objective)
    assert done.model.score_difference == pytest.approx(0, abs=1e-6)
    packed = sgq.load_packed(tmp_path / "m.sgq", model=make(data))
    assert sgq.accuracy(packed, data, data["paper"].val_mask, task=PAPERS, forward=call) == (
        pytest.approx(done.accuracy)
    )
    assert sum(packed.stored_nbytes.values()) == packed.memory.memory_bytes
    other = library()
    other["paper", "cites", "paper"].edge_index[0, 0] += 1
    with pytest.raises(GraphError, match="edges"):
        packed(other)
    with pytest.raises(GraphError, match="expected one of the node types that the model was"):
        packed(sgq.load_graph("digits"))


def call(packed, data):
    return packed(data)


class Relations(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv1, self.conv2 = conv(64, 16, 2), conv(16, 10, 2)

    def forward(self, x, edge_index, edge_type):
        return self.conv2(self.conv1(x, edge_index, edge_type).relu(), edge_index, edge_type)


@pytest.mark.parametrize("conv", [RGCNConv, FastRGCNConv])
def test_types_of_edges_are_passed_by_name(conv, tmp_path):
    data = sgq.load_graph("digits")
    data.edge_type = torch.arange(data.num_edges) % 2
    torch.manual_seed(0)
    model = Relations(conv)
    sgq.fit(model, data, TrainingConfig(epochs=10))
    objective = sgq.QuantizationObjective(
        model, data, candidates=(4, 8), finetuning=TrainingConfig(epochs=2), exact_inputs=False
    )
    study = sgq.create_study(objective, storage=tmp_path / "s.db", study_name="s", seed=0)
    study.optimize(objective, n_trials=2)
    sgq.export_study(study, tmp_path / "m.sgq", objective=objective)
    packed = sgq.load_packed(tmp_path / "m.sgq", model=Relations(conv))
    assert packed(data).shape == (len(data.x), 10)
    other = data.clone()
    other.edge_type = 1 - data.edge_type
    with pytest.raises(GraphError, match="edges"):
        packed(other)
