import optuna
import pytest
import torch
from optuna.trial import TrialState
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import SAGEConv

from sgquant_optuna.exceptions import GraphError, ModelError, StudyMismatchError
from sgquant_optuna.graph.paper_models import GCN
from sgquant_optuna.graph.training import NODE_CLASSIFICATION
from sgquant_optuna.quantization.memory import honest_memory, paper_memory
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.sites import BitWidths
from sgquant_optuna.search.objective import QuantizationObjective
from sgquant_optuna.search.study_creation import create_study
from sgquant_optuna.study.record import StudyRecord
from tests.conftest import FAST, make_graph
from tests.pretended_trainings import pretend


def enqueue_and_run(objective, *choices):
    study = optuna.create_study(directions=objective.directions)
    for params in choices:
        study.enqueue_trial(params)
    study.optimize(objective, n_trials=len(choices))
    return study


def test_binary_rows_divided_by_their_sums_are_not_searched():
    graph = make_graph()
    at = torch.arange(60)
    x = torch.zeros(
        60, 12
    )  # two or three in a row: one bit rounds neither a half nor a third to 0
    x[at, at % 12] = x[at, (at + 3) % 12] = x[at[::2], (at[::2] + 7) % 12] = 1
    graph.x = x / x.sum(dim=1, keepdim=True)
    objective = QuantizationObjective(GCN(12, 3), graph)
    space = objective.search_space
    assert not any("conv1" in name for name in space.names)
    bits = space.from_params(space.uniform_params(1))
    inputs = [site for site, size in objective.layout.sizes.items() if size.content is not None]
    assert {bits[site] for site in inputs} == {2}  # without loss: 0, 1/6, 1/3 and 1/2


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
    drop = objective.full_precision_accuracy - attrs["accuracy"]
    assert attrs["accuracy_drop"] == pytest.approx(drop)
    assert attrs["evidence"]["measured"] == [pytest.approx(drop)]
    assert abs(drop) <= 100 and abs(attrs["evidence"]["expected"][0]) <= attrs["flips"] <= 100
    assert attrs["trainings"] == 1
    assert BitWidths.from_dict(attrs["bit_widths"]) == bits
    assert attrs["seconds"] > 0


def uniform(objective, *widths):
    return [objective.search_space.uniform_params(width) for width in widths]


def test_an_infeasible_trial_is_penalised_beyond_full_precision(trained_gcn, graph, monkeypatch):
    objective = QuantizationObjective(
        trained_gcn, graph, max_drop=1.0, confidence=0.5, finetuning=FAST
    )
    pretend(objective, monkeypatch, {1: 4.0})
    trial = enqueue_and_run(objective, *uniform(objective, 1)).trials[0]
    full = honest_memory(objective.layout, BitWidths(dict.fromkeys(objective.layout.sizes, 32)))
    # After the first look a drop of 4 points counts as 5: 4 beyond the limit.
    assert trial.user_attrs["drop_bound"] == pytest.approx(5.0)
    assert trial.value == pytest.approx(full.full_precision_bytes * 5)
    assert trial.system_attrs["constraints"] == [pytest.approx(4.0)]
    assert trial.constraints == {"0": pytest.approx(4.0)}


def test_the_best_trial_of_optuna_is_never_infeasible(objective, monkeypatch):
    pretend(objective, monkeypatch, {1: 50.0, 2: 1.0, 4: 1.0, 8: 1.0})
    study = enqueue_and_run(objective, *uniform(objective, 1, 2, 4, 8))
    assert study.best_trial.params == objective.search_space.uniform_params(2)
    assert study._storage.get_best_trial(study._study_id).number == 1  # as the dashboard asks


def test_a_trial_ends_when_it_is_decided(trained_gcn, graph, monkeypatch):
    objective = QuantizationObjective(
        [trained_gcn] * 3,
        graph,
        max_drop=1.0,
        confidence=0.5,
        candidates=(1, 2, 4, 8, 16),
        finetuning=FAST,
    )
    # At confidence 0.5 the bound is the drop itself. A first look may be wrong by 30 %, the first
    # training by 20 %, the third by 12 %. What becomes the best gets all three.
    looks = pretend(objective, monkeypatch, {1: 1.5, 2: 1.3, 4: 1.1, 8: 0.5, 16: 0.5})
    study = enqueue_and_run(objective, *uniform(objective, 1, 2, 4, 8, 16))
    steps = {width: [step for w, step in looks if w == width] for width in (1, 2, 4, 8, 16)}
    assert steps == {1: [0], 2: [0, 1], 4: [0, 1, 2, 3], 8: [0, 1, 2, 3], 16: [0, 1]}
    assert [trial.user_attrs["trainings"] for trial in study.trials] == [0, 1, 3, 3, 1]


def test_the_trainings_are_steps_for_a_pruner(trained_gcn, graph, monkeypatch):
    objective = QuantizationObjective(
        [trained_gcn] * 2, graph, max_drop=2.0, confidence=0.5, finetuning=FAST
    )
    pretend(objective, monkeypatch, {1: 2.1, 8: 0.1})
    full = honest_memory(objective.layout, objective.full_precision).full_precision_bytes
    pruner = optuna.pruners.ThresholdPruner(upper=full)  # none that is penalised
    study = create_study(objective, storage=optuna.storages.InMemoryStorage(), pruner=pruner)
    for params in uniform(objective, 8, 1):
        study.enqueue_trial(params)
    study.optimize(objective, n_trials=2)
    complete, pruned = study.trials
    assert complete.state == TrialState.COMPLETE
    assert list(complete.intermediate_values) == [0, 1, 2]
    assert pruned.state == TrialState.PRUNED
    # What it measured until then is there to learn from.
    assert pruned.user_attrs["trainings"] == 0
    assert pruned.constraints["0"] > 0


def test_pareto_mode_returns_memory_and_drop(trained_gcn, graph):
    objective = QuantizationObjective(trained_gcn, graph, mode="pareto", finetuning=FAST)
    study = enqueue_and_run(objective, objective.search_space.uniform_params(2))
    trial = study.trials[0]
    attrs = trial.user_attrs
    assert trial.values == [attrs["memory_bytes"], *attrs["evidence"]["expected"]]
    assert trial.constraints == {}


def test_with_a_budget_the_value_is_the_drop_or_a_penalty(trained_gcn, graph, monkeypatch):
    options = {"mode": "budget", "degree_edges": (2,), "finetuning": FAST}
    objective = QuantizationObjective(trained_gcn, graph, budget_bytes=600, **options)
    pretend(objective, monkeypatch, {1: 1.0, 8: 0.1})
    small, large = (objective.search_space.uniform_params(width) for width in (1, 8))
    study = enqueue_and_run(objective, small, large)
    excess = objective.memory_bytes(large) / 600 - 1
    assert excess > 0 and objective.budget_excess(large) == excess
    assert study.trials[0].value == 1.0
    assert study.trials[1].value == 100 * (1 + excess)
    assert study.trials[1].constraints == {"0": excess}
    assert study.best_trial.number == 0
    assert StudyRecord.load(study) == objective.record()
    assert objective.fingerprint["protocol"]["budget_bytes"] == 600
    other = QuantizationObjective(trained_gcn, graph, budget_bytes=700, **options)
    with pytest.raises(StudyMismatchError, match=r"protocol \(budget_bytes: was 600, is 700\)"):
        other(study.ask())


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            100,
            r"expected at least the smallest assignment, 0.000 MB \(\d+ bytes\), got .*100 bytes",
        ),
        (1_000_000, r"less than full precision takes, got 1.000 MB .*: nothing need be quantized"),
        (2_000, r"less than the largest assignment, .*: add wider candidates, or give less"),
    ],
)
def test_a_budget_that_decides_nothing_is_refused(budget, message, trained_gcn, graph):
    with pytest.raises(ValueError, match=message):
        QuantizationObjective(
            trained_gcn, graph, mode="budget", budget_bytes=budget, finetuning=FAST
        )


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
    hidden = [NODE_CLASSIFICATION.without_test(one).y for one in (other, graph)]
    assert hidden[0].equal(hidden[1])


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
    other = QuantizationObjective(trained_gcn, graph, objective.config, candidates=(2, 8))
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
        ({"max_drop": -1}, "max_drop: expected a drop >= 0"),
        (
            {"mode": "budget"},
            "budget_bytes: expected with mode 'budget', and there only; got None",
        ),
        ({"budget_bytes": 5}, "there only; got 5 with mode 'constrained'"),
        ({"mode": "budget", "budget_bytes": 0}, "expected a positive number of bytes, got 0"),
        ({"repeats": 0}, "repeats: expected at least 1"),
        ({"confidence": 1.0}, r"confidence: expected a number in \[0.5, 1\), got 1.0"),
        ({"first_look": -1}, "first_look: expected epochs >= 0, got -1"),
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
