import optuna
import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import SAGEConv

from sgquant_optuna.exceptions import GraphError, ModelError, StudyMismatchError
from sgquant_optuna.graph.paper_models import GCN
from sgquant_optuna.quantization.memory import honest_memory, paper_memory
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.sites import BitWidths
from sgquant_optuna.search.objective import QuantizationObjective, without_test_nodes
from sgquant_optuna.study.record import StudyRecord
from tests.conftest import FAST
from tests.packed.test_packed_model import divided_graph


def enqueue_and_run(objective, *choices):
    study = optuna.create_study(directions=objective.directions)
    for params in choices:
        study.enqueue_trial(params)
    study.optimize(objective, n_trials=len(choices))
    return study


def test_binary_rows_divided_by_their_sums_are_not_searched():
    objective = QuantizationObjective(GCN(12, 3), divided_graph("sparse 1/count"))
    space = objective.search_space
    assert not any("conv1" in name for name in space.names)
    bits = space.from_params(space.uniform_params(1))
    inputs = [site for site, size in objective.layout.sizes.items() if size.content is not None]
    assert {bits[site] for site in inputs} == {32}


def test_a_trial_tells_what_it_saved_and_what_it_cost(objective):
    params = objective.search_space.uniform_params(4)
    trial = enqueue_and_run(objective, params).trials[0]
    bits = objective.search_space.from_params(params)
    honest = honest_memory(objective.layout, bits)
    attrs = trial.user_attrs
    assert trial.value == attrs["memory_bytes"] == honest.memory_bytes
    assert objective.memory_bytes(params) == honest.memory_bytes
    assert attrs["saving"] == honest.saving
    assert attrs["paper_memory_bytes"] == paper_memory(objective.layout, bits).memory_bytes
    assert attrs["average_bits"] == 4
    assert attrs["accuracy_drop"] == objective.full_precision_accuracy - attrs["accuracy"]
    assert BitWidths.from_dict(attrs["bit_widths"]) == bits
    assert attrs["seconds"] > 0


def test_an_infeasible_trial_is_penalised_beyond_full_precision(trained_gcn, graph, monkeypatch):
    objective = QuantizationObjective(trained_gcn, graph, max_drop=1.0, finetuning=FAST)
    monkeypatch.setattr(objective, "measure", lambda bits: 90.0 if 32 in bits.values() else 86.0)
    trial = enqueue_and_run(objective, objective.search_space.uniform_params(1)).trials[0]
    full = honest_memory(objective.layout, BitWidths(dict.fromkeys(objective.layout.sizes, 32)))
    # A drop of 4 points is 3 beyond the limit.
    assert trial.value == full.full_precision_bytes * 4
    assert trial.system_attrs["constraints"] == [3.0]
    assert trial.constraints == {"0": 3.0}


def test_the_best_trial_of_optuna_is_never_infeasible(objective, monkeypatch):
    accuracies = {1: 50.0, 2: 99.0, 4: 99.0, 8: 99.0, 32: 100.0}
    monkeypatch.setattr(objective, "measure", lambda bits: accuracies[max(bits.values())])
    study = enqueue_and_run(
        objective, *[objective.search_space.uniform_params(width) for width in (1, 2, 4, 8)]
    )
    assert study.best_trial.params == objective.search_space.uniform_params(2)
    assert study._storage.get_best_trial(study._study_id).number == 1  # as the dashboard asks


def test_pareto_mode_returns_memory_and_drop(trained_gcn, graph):
    objective = QuantizationObjective(trained_gcn, graph, mode="pareto", finetuning=FAST)
    study = enqueue_and_run(objective, objective.search_space.uniform_params(2))
    trial = study.trials[0]
    assert trial.values == [trial.user_attrs["memory_bytes"], trial.user_attrs["accuracy_drop"]]
    assert trial.constraints == {}


def test_the_same_choice_measures_the_same(objective):
    bits = objective.search_space.from_params(objective.search_space.uniform_params(1))
    assert objective.measure(bits) == objective.measure(bits)


def test_repeats_average_several_seeds(trained_gcn, graph):
    one, three = (
        QuantizationObjective(trained_gcn, graph, finetuning=FAST, repeats=repeats)
        for repeats in (1, 3)
    )
    bits = one.search_space.from_params(one.search_space.uniform_params(1))
    runs = [one.finetune(bits, seed=seed)[1].accuracy for seed in range(3)]
    assert three.measure(bits) == pytest.approx(sum(runs) / 3)


def test_several_models_are_measured_in_each_trial(trained_gcn, graph):
    torch.manual_seed(1)
    other = GCN(12, 3, hidden_channels=8)
    both = QuantizationObjective([trained_gcn, other], graph, finetuning=FAST)
    bits = both.search_space.from_params(both.search_space.uniform_params(2))
    alone = [
        QuantizationObjective(model, graph, finetuning=FAST).measure(bits)
        for model in (trained_gcn, other)
    ]
    assert both.measure(bits) == pytest.approx(sum(alone) / 2)
    assert both.fingerprint["protocol"]["models"] == 2


def test_the_users_model_and_graph_stay_as_they_were(trained_gcn, graph):
    weights = {name: value.clone() for name, value in trained_gcn.state_dict().items()}
    columns = {name: value.clone() for name, value in graph.to_dict().items()}
    objective = QuantizationObjective(trained_gcn, graph, finetuning=FAST)
    enqueue_and_run(objective, objective.search_space.uniform_params(1))
    assert all(value.equal(weights[name]) for name, value in trained_gcn.state_dict().items())
    assert not hasattr(trained_gcn, "graph_context")
    assert list(graph.to_dict()) == list(columns)
    assert all(graph[name].equal(value) for name, value in columns.items())


def test_the_search_cannot_reach_the_test_nodes(objective, graph):
    seen = objective.graph.data
    assert "test_mask" not in seen
    assert set(seen.y[graph.test_mask].tolist()) == {-1}
    assert seen.y[graph.train_mask].equal(graph.y[graph.train_mask])
    assert "test_mask" in graph and set(graph.y.tolist()) == {0, 1, 2}


def test_test_labels_do_not_matter(trained_gcn, graph):
    other = graph.clone()
    other.y[graph.test_mask] = 0
    assert without_test_nodes(other).y.equal(without_test_nodes(graph).y)


def test_a_study_of_the_plain_api_is_signed_at_its_first_trial(objective):
    study = enqueue_and_run(objective, objective.search_space.uniform_params(8))
    record = StudyRecord.load(study)
    assert record == objective.record()
    assert record.layout == objective.layout


def test_ask_and_tell_work_too(objective):
    study = optuna.create_study()
    trial = study.ask()
    study.tell(trial, objective(trial))
    assert study.trials[0].user_attrs["saving"] > 1


def test_a_study_of_another_space_is_refused(objective, trained_gcn, graph):
    study = enqueue_and_run(objective, objective.search_space.uniform_params(8))
    other = QuantizationObjective(
        trained_gcn, graph, max_drop=5.0, degree_edges=(2,), finetuning=FAST, candidates=(2, 8)
    )
    with pytest.raises(StudyMismatchError, match=r"search space \(candidates: was \[1, 2, 4, 8\]"):
        other(study.ask())


@pytest.mark.parametrize("granularity", ["uniform", "lwq", "cwq", "lwq+cwq"])
def test_without_taq_there_are_no_buckets(granularity, trained_gcn, graph):
    objective = QuantizationObjective(trained_gcn, graph, granularity=granularity, finetuning=FAST)
    assert objective.layout.num_buckets == 1
    assert {site.bucket for site in objective.layout.sizes} == {None}


def test_ranges_by_bucket_need_buckets_whatever_is_searched(trained_gcn, graph):
    objective = QuantizationObjective(
        trained_gcn,
        graph,
        granularity="lwq",
        degree_edges=(3,),
        quantizer=QuantizerConfig(axis="bucket"),
        finetuning=FAST,
    )
    assert objective.layout.num_buckets == 2
    assert objective.search_space.names == ("conv1", "conv2")


@pytest.mark.parametrize("axis", ["tensor", "bucket", "column", "row"])
@pytest.mark.parametrize("estimator", ["minmax", "percentile", "least_squares"])
def test_every_range_setting_runs(axis, estimator, trained_gcn, graph):
    objective = QuantizationObjective(
        trained_gcn,
        graph,
        quantizer=QuantizerConfig(axis=axis, range_estimator=estimator),
        finetuning=FAST,
    )
    bits = objective.search_space.from_params(objective.search_space.uniform_params(8))
    assert objective.full_precision_accuracy - objective.measure(bits) < 20


def test_a_users_own_model_needs_nothing_special(graph):
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList([SAGEConv(12, 8), SAGEConv(8, 3)])

        def forward(self, x, edge_index):
            return self.convs[1](self.convs[0](x, edge_index).relu(), edge_index)

    objective = QuantizationObjective(Mine(), graph, granularity="lwq", finetuning=FAST)
    assert objective.search_space.names == ("convs.0", "convs.1")
    study = enqueue_and_run(objective, objective.search_space.uniform_params(4))
    assert study.trials[0].user_attrs["accuracy"] > 0


def test_a_model_with_other_arguments_comes_with_its_forward(graph):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = SAGEConv(12, 3)

        def forward(self, features, links):
            return self.conv(features, links)

    with pytest.raises(ModelError, match="Odd.forward needs features, links"):
        QuantizationObjective(Odd(), graph)
    objective = QuantizationObjective(
        Odd(), graph, forward=lambda model, data: model(data.x, data.edge_index), finetuning=FAST
    )
    assert objective.full_precision_accuracy > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "best"}, "mode: expected one of"),
        ({"max_drop": -1}, "max_drop: expected percentage points >= 0"),
        ({"repeats": 0}, "repeats: expected at least 1"),
        ({"candidates": (0,)}, "candidate bit widths: expected one of"),
        ({"degree_edges": (3, 1)}, "degree edges: expected positive integers"),
        ({"degree_edges": 0}, "number of degree buckets: expected at least 1"),
    ],
)
def test_bad_options_say_what_was_expected(options, message, trained_gcn, graph):
    with pytest.raises(ValueError, match=message):
        QuantizationObjective(trained_gcn, graph, **options)


def test_a_bad_graph_is_refused_at_the_door(trained_gcn, graph):
    graph.val_mask = torch.zeros(60, dtype=torch.bool)
    with pytest.raises(GraphError, match="column val_mask: expected at least one node"):
        QuantizationObjective(trained_gcn, graph)


def test_a_model_without_message_passing_is_refused(graph: Data):
    with pytest.raises(ModelError, match="message passing"):
        QuantizationObjective(nn.Linear(12, 3), graph)


def test_studies_of_one_name_in_two_storages_are_both_signed(objective):
    for _ in range(2):
        study = optuna.create_study(study_name="same", directions=objective.directions)
        study.optimize(objective, n_trials=1)
        assert StudyRecord.load(study) is not None
