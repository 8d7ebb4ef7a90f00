import json
from dataclasses import replace

import optuna
import pytest

from sgquant_optuna.exceptions import GraphError, StudyNotFoundError
from sgquant_optuna.graph.paper_models import GCN
from sgquant_optuna.graph.training import fit
from sgquant_optuna.quantization.input_stores import InputContent
from sgquant_optuna.quantization.memory import FeatureLayout, SiteSize
from sgquant_optuna.quantization.sites import Site
from sgquant_optuna.search.final_report import _smallest_that_holds, final_report
from sgquant_optuna.search.study_creation import create_study
from sgquant_optuna.study.final_result import FinalResult
from sgquant_optuna.study.formats import to_json, to_markdown
from sgquant_optuna.study.record import StudyRecord
from sgquant_optuna.study.report import report
from sgquant_optuna.study.rows import trial_rows
from sgquant_optuna.study.selection import rank
from sgquant_optuna.study.trial_result import TrialScore
from tests.conftest import FAST
from tests.hand_made import measured, new_study


@pytest.fixture
def study(objective, monkeypatch):
    """8, 2 and 4 bits everywhere, each a point below full precision."""
    monkeypatch.setattr(objective, "measure", lambda bits: 98.0 + 1.0 * (32 in bits.values()))
    study = create_study(objective, storage=optuna.storages.InMemoryStorage(), study_name="mine")
    for width in (8, 2, 4):
        study.enqueue_trial(objective.search_space.uniform_params(width))
    study.optimize(objective, n_trials=3)
    return study


def set_attrs(study, rows):
    """Give the finished trials other drops and memories."""
    for trial, (memory, drop) in zip(study.trials, rows, strict=True):
        # A stand-in for measured trials: the storage refuses to change finished ones.
        attrs = study._storage.get_trial(trial._trial_id).user_attrs
        attrs["memory_bytes"], attrs["accuracy_drop"] = memory, drop
    return study


def ranked(study, max_drop):
    return rank(study, trial_rows(study, TrialScore), max_drop)


def test_the_smallest_feasible_trial_wins_and_the_nearest_miss_follows(study):
    set_attrs(study, [(100.0, 0.1), (50.0, 0.9), (70.0, 0.6)])
    assert [trial.number for trial in ranked(study, 1.0)] == [1, 2, 0]
    assert [trial.number for trial in ranked(study, 0.7)] == [2, 0, 1]
    assert [trial.number for trial in ranked(study, 0.0)] == [0, 2, 1]


@pytest.mark.parametrize(
    ("count", "boundary", "tries", "found", "measured"),
    [
        (11, 0, 6, 0, [0]),
        (11, 5, 6, 5, [0, 5, 2, 3, 4]),
        (11, 10, 6, 10, [0, 5, 8, 9, 10]),
        (11, 11, 6, None, [0, 5, 8, 9, 10]),
        (11, 4, 3, 5, [0, 5, 2]),
        (1, 1, 6, None, [0]),
        (2, 1, 6, 1, [0, 1]),
    ],
)
def test_halving_finds_the_smallest_that_holds(count, boundary, tries, found, measured):
    seen = []

    def holds(rank):
        seen.append(rank)
        return rank >= boundary

    assert _smallest_that_holds(count, holds, tries=tries) == found
    assert seen == measured


def test_of_equal_memories_the_more_accurate_wins(study):
    set_attrs(study, [(50.0, 0.3), (50.0, 0.2), (50.0, 0.4)])
    assert ranked(study, 1.0)[0].number == 1


def test_a_report_shows_bits_accuracies_and_both_memories(study, objective):
    shown = report(study)
    assert shown.num_measured == shown.num_trials == 3
    assert shown.is_feasible
    assert shown.honest.memory_bytes == shown.result.memory_bytes
    text = str(shown)
    for words in (
        "conv1 │ embedding",
        "degree 0-1",
        "degree 2+",
        "validation accuracy",
        f"{objective.full_precision_accuracy:.2f} %",
        f"{shown.accuracy:.2f} %",
        "memory, honest",
        "memory, paper",
        f"{shown.paper.saving:.1f}x smaller",
        f"{shown.honest.average_bits:.2f} bits a value",
        "3 │ of 3 started",
    ):
        assert words in text
    assert "fresh seeds" not in text


def test_a_final_report_measures_the_test_nodes_once(study, objective, graph, monkeypatch):
    final = final_report(study, objective, graph, seeds=3)
    assert (final.seeds, final.times_opened) == (3, 1)
    assert len(final.quantized_test) == len(final.full_precision_test) == 3
    assert all(0 <= value <= 100 for value in final.quantized_test)
    assert FinalResult.load(study) == final
    monkeypatch.setattr(objective.models[0], "finetune", None)  # a second look would fail
    assert final_report(study, objective, graph, seeds=3) == final
    assert "test, 3 fresh seeds" in str(report(study))
    assert report(study).trial == final.trial


def test_the_model_can_be_trained_anew_from_each_seed(study, objective, graph):
    seeds = []

    def retrain(seed):
        seeds.append(seed)
        model = GCN(12, 3, hidden_channels=8)
        fit(model, graph, FAST, seed=seed)
        return model

    final = final_report(study, objective, graph, seeds=2, retrain=retrain)
    assert final.retrained
    assert seeds == [1000, 1001]
    assert "test, 2 trainings" in str(report(study))


def test_a_new_best_trial_opens_the_test_nodes_again_and_says_so(study, objective, graph):
    final_report(study, objective, graph, seeds=2)
    study.enqueue_trial(objective.search_space.uniform_params(1))
    study.optimize(objective, n_trials=1)
    assert report(study).trial == 3
    assert report(study).final is None
    again = final_report(study, objective, graph, seeds=2)
    assert again.times_opened == 2


def pretend(objective, monkeypatch, accuracies):
    """Let finetuning reach an accuracy, in percent, that depends on the widest site alone."""
    finetune = objective.models[0].finetune

    def reaching(bits, config, *, seed):
        model, result = finetune(bits, config, seed=seed)
        accuracy = accuracies[max(bits.values())]
        return model, type(result)(accuracy, result.epochs, result.losses)

    monkeypatch.setattr(objective.models[0], "finetune", reaching)


def test_a_lucky_trial_that_does_not_hold_is_passed_over(study, objective, graph, monkeypatch):
    pretend(objective, monkeypatch, {2: 50.0, 4: 99.0, 8: 99.0, 32: 100.0})
    final = final_report(study, objective, graph, seeds=2)
    assert (final.trial, final.others, final.holds) == (2, (1,), True)
    assert final.validation_drop == pytest.approx(1.0)


def test_if_nothing_holds_the_nearest_is_taken_and_told(study, objective, graph, monkeypatch):
    pretend(objective, monkeypatch, {2: 50.0, 4: 60.0, 8: 55.0, 32: 100.0})
    final = final_report(study, objective, graph, seeds=2)
    assert (final.trial, final.holds) == (2, False)
    assert "does not hold" in str(report(study))


def test_the_paired_interval_is_students(monkeypatch):
    final = FinalResult(0, True, 3, False, 0.0, (80.0, 81.0, 82.0), (79.0, 79.0, 79.0))
    # Drops 1, 2, 3: mean 2, standard error 1 / sqrt(3), t(0.975, 2) = 4.3027.
    assert final.test_drop == 2
    assert final.test_drop_interval == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)


def test_seeds_that_make_no_difference_give_no_interval(study):
    final = FinalResult(1, True, 3, False, 0.0, (80.0,) * 3, (79.0,) * 3)
    assert final.test_drop_interval is None
    final.save(study)
    text = str(report(study))
    assert "the same for" in text and "CI" not in text


@pytest.mark.parametrize(
    ("row_value", "store"),
    [(None, "sparse codebook"), ("1/count", "sparse 1/count"), ("own", "sparse codebook")],
)
def test_a_store_other_than_packed_rows_is_told(study, row_value, store):
    assert "stored as" not in str(report(study))
    record = StudyRecord.load(study)
    sizes = {
        site: replace(size, content=InputContent(1, 1, 1, True, (1, 2, 4, 8), row_value))
        for site, size in record.layout.sizes.items()
        if site.layer == "conv1"
    }
    layout = replace(record.layout, sizes={**record.layout.sizes, **sizes})
    replace(record, layout=layout).save(study)
    text = str(report(study))
    assert f"{store}, exact" in text and "rows" in text
    assert "memory, exact input" in text


def test_another_graph_is_refused(study, objective, graph):
    other = graph.clone()
    other.x = other.x + 1
    with pytest.raises(GraphError, match="expected the graph that the study was measured on"):
        final_report(study, objective, other)


def test_a_graph_without_test_nodes_is_refused(study, objective, graph):
    del graph.test_mask
    with pytest.raises(GraphError, match="column test_mask: expected at least one test node"):
        final_report(study, objective, graph)


def test_too_few_seeds_are_refused(study, objective, graph):
    with pytest.raises(ValueError, match="expected seeds >= 2"):
        final_report(study, objective, graph, seeds=1)


def test_a_study_without_finished_trials_is_told(objective):
    study = create_study(objective, storage=optuna.storages.InMemoryStorage())
    with pytest.raises(StudyNotFoundError, match="expected at least one finished trial"):
        report(study)


def test_a_strange_study_is_told():
    with pytest.raises(StudyNotFoundError, match="expected a study of QuantizationObjective"):
        report(optuna.create_study())


def test_a_layer_whose_name_looks_like_markup_is_told_as_it_is():
    made = FeatureLayout(
        {Site("[/x] [red]1", "embedding", None): SiteSize(num_rows=10, num_columns=4)},
        num_nodes=10,
        num_buckets=1,
    )
    study = new_study(made=made)
    study.add_trial(measured((4,), 0.1, made=made))
    assert "[/x] [red]1" in str(report(study))
    assert "\\[/x\\] \\[red\\]1" in to_markdown(report(study))


def test_what_was_left_out_stands_below_the_bits(study):
    record = StudyRecord.of(study)
    note = "attn: its features are out of reach"
    replace(record, layout=replace(record.layout, notes=(note,))).save(study)
    shown = report(study)
    assert note in str(shown)
    assert json.loads(to_json(shown))["notes"] == [note]
