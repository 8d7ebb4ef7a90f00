import json
from dataclasses import replace

import optuna
import pytest

from sgquant_optuna.exceptions import GraphError, StudyMismatchError, StudyNotFoundError
from sgquant_optuna.graph.paper_models import GCN
from sgquant_optuna.graph.training import fit
from sgquant_optuna.quantization.input_stores import InputContent, SparseContent
from sgquant_optuna.quantization.memory import FeatureLayout, SiteSize
from sgquant_optuna.quantization.sites import BitWidths, Site
from sgquant_optuna.search.final_report import _sequence, final_report
from sgquant_optuna.search.fresh_trainings import FreshMeasurement, FreshTrainings
from sgquant_optuna.search.objective import QuantizationObjective
from sgquant_optuna.search.study_creation import create_study
from sgquant_optuna.search.trial_export import export_assignment
from sgquant_optuna.study.drop_evidence import DropEvidence
from sgquant_optuna.study.final_result import FinalResult
from sgquant_optuna.study.formats import to_json, to_markdown
from sgquant_optuna.study.limit import Limit
from sgquant_optuna.study.record import StudyRecord
from sgquant_optuna.study.report import report
from sgquant_optuna.study.rows import trial_rows
from sgquant_optuna.study.selection import rank
from sgquant_optuna.study.trial_result import TrialResult, TrialScore
from tests.conftest import FAST
from tests.hand_made import measured, new_study


@pytest.fixture
def study(objective):
    """8, 2 and 4 bits everywhere, which lose about a point of 5 that are allowed."""
    study = create_study(objective, storage=optuna.storages.InMemoryStorage(), study_name="mine")
    for width in (8, 2, 4):
        study.enqueue_trial(objective.search_space.uniform_params(width))
    study.optimize(objective, n_trials=3)
    memories = [trial.user_attrs["memory_bytes"] for trial in study.trials]
    return set_attrs(study, list(zip(memories, (0.8, 1.0, 0.9), strict=True)))


def test_a_budget_is_reported_with_the_share_that_is_used():
    study = new_study(budget=70_000.0)
    study.add_trial(measured((8, 8, 8, 8), 0.0, budget=70_000.0))
    assert "0.070 MB" in str(report(study)) and "no trial is feasible" in str(report(study))
    study.add_trial(measured((4, 4, 4, 4), 0.25, budget=70_000.0))
    found = report(study)
    assert found.trial == 1 and found.is_feasible
    # Four sites of 4,000 bytes a bit reach 17 bits: 8 + 4 + 4 + 1.
    text = " ".join(str(found).replace("│", " ").split())
    assert "0.070 MB 91.7% used; nearer ones, up to 0.068 MB, were not measured to be" in text
    assert "drop 0.25 points " in text and "limit" not in text
    described = json.loads(to_json(found))
    assert (described["mode"], described["budget_bytes"]) == ("budget", 70_000.0)
    assert described["max_drop"] is None
    tight = new_study(budget=65_000.0)
    tight.add_trial(measured((4, 4, 4, 4), 0.25, budget=65_000.0))
    assert "98.7% used, the nearest possible" in str(report(tight))
    tight = new_study(budget=64_500.0)
    tight.add_trial(measured((4, 4, 4, 4), 0.25, budget=64_500.0))
    assert "99.5% used " in str(report(tight))


def test_a_report_tells_the_promise_other_limits_and_what_labels_can_promise():
    study = new_study()
    # Of 100 labelled nodes none is lost, so the slope stays 1 +- 0.7: f is at most 1.897 f.
    for width, expected in ((8, 0.1), (4, 0.25), (2, 0.5), (1, 4.0)):
        evidence = DropEvidence((expected,), (0.0,), 0.0, 100, {}).to_dict()
        told = {"evidence": evidence, "flips": 4 * expected}
        study.add_trial(measured((width,) * 4, 0.0, **told))
    found = report(study)
    assert found.trial == 1
    assert found.result.drop_bound == pytest.approx(0.25 * 1.8971, abs=1e-3)
    # 0.5 points are 0.2636 expected ones, with 4 % of flips each; the last trial is too far.
    assert found.certifiable_flips == pytest.approx(4 * 0.5 / 1.8971, abs=1e-3)
    sentence = (
        "With 100 labelled nodes, a drop of at most 0.5 points can be promised where up to about "
        "1.1 % of the predictions change."
    )
    assert found.certainty == sentence
    for shown in (str(found), to_markdown(found), found._repr_html_()):
        assert sentence in " ".join(shown.replace("│", " ").split())
    text = " ".join(str(found).replace("│", " ").split())
    assert "drop, all nodes 0.25 points at most 0.47 (90%), limit 0.5" in text
    assert "predictions that change 1.00 %" in text
    assert [(one.max_drop, one.trial) for one in found.other_limits] == [(0.25, 0), (1, 2), (2, 2)]
    described = json.loads(to_json(found))
    assert described["promise"]["drop_bound"] == found.result.drop_bound
    assert described["other_limits"][1]["trial"] == 2


def set_attrs(study, rows):
    """Give the finished trials other drops and memories."""
    for trial, (memory, drop) in zip(study.trials, rows, strict=True):
        # A stand-in for measured trials: the storage refuses to change finished ones.
        attrs = study._storage.get_trial(trial._trial_id).user_attrs
        attrs["memory_bytes"], attrs["accuracy_drop"], attrs["evidence"] = memory, drop, None
    return study


def ranked(study, max_drop):
    return rank(study, trial_rows(study, TrialScore), Limit(max_drop=max_drop))


def test_the_smallest_feasible_trial_wins_and_the_nearest_miss_follows(study):
    set_attrs(study, [(100.0, 0.1), (50.0, 0.9), (70.0, 0.6)])
    assert [trial.number for trial in ranked(study, 1.0)] == [1, 2, 0]
    assert [trial.number for trial in ranked(study, 0.7)] == [2, 0, 1]
    assert [trial.number for trial in ranked(study, 0.0)] == [0, 2, 1]


def sequence(trials, max_drop, top):
    found = _sequence(trials, Limit(max_drop=max_drop), top)
    return [trial.number for trial in found]


def test_trials_neither_smaller_nor_safer_are_not_measured_again(study):
    rows = [(100.0, 0.1), (50.0, 0.9), (70.0, 0.9)]
    trials = rank(study, trial_rows(set_attrs(study, rows), TrialResult), Limit(max_drop=1.0))
    assert sequence(trials, 1.0, 6) == [
        1,
        0,
    ]
    assert sequence(trials, 1.0, 1) == [1]
    # None is feasible.
    nearest = rank(study, trial_rows(study, TrialResult), Limit(max_drop=0.05))
    assert sequence(nearest, 0.05, 2) == [
        0,
        1,
    ]


def test_of_many_trials_the_smallest_the_safest_and_some_between_are_measured_again(study):
    (one, *_) = rank(study, trial_rows(study, TrialResult), Limit(max_drop=5.0))
    trials = [
        replace(one, number=place, result=replace(one.result, drop_bound=1.0 - place / 20))
        for place in range(11)
    ]
    assert sequence(trials, 1.0, 3) == [
        0,
        5,
        10,
    ]


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


def test_baselines_are_tested_on_the_same_trainings(study, objective, graph):
    space = objective.search_space
    uniform = {f"uniform {w}": space.from_params(space.uniform_params(w)) for w in (2, 4, 8)}
    exact = {"float32": objective.full_precision}
    final = final_report(study, objective, graph, seeds=2, baselines={**uniform, **exact})
    assert FinalResult.load(study) == final
    assert list(final.baselines) == ["uniform 2", "uniform 4", "uniform 8", "float32"]
    same = final.baselines["float32"]
    assert same.test == final.full_precision_test
    assert (same.flips, same.test_drop, same.test_drop_interval) == (0.0, 0.0, (0.0, 0.0))
    chosen = report(study)
    assert chosen.trial == final.trial
    baseline = next(final.baselines[name] for name, bits in uniform.items() if bits == chosen.bits)
    assert baseline.test == final.quantized_test
    assert baseline.memory_bytes == chosen.honest.memory_bytes
    assert baseline.test_drop_interval == final.test_drop_interval
    assert "test of uniform 2" in str(chosen)
    assert '"uniform 8": {' in to_json(chosen)


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (BitWidths({}), "baseline 'mine': expected the sites of the study, differs in conv"),
        (3, r"baseline 'mine': expected widths of \[1, 2, 4, 8, 32\], which the .* got \[3\]"),
    ],
)
def test_a_baseline_that_cannot_be_measured_is_refused(bits, message, study, objective, graph):
    if isinstance(bits, int):
        bits = BitWidths(dict.fromkeys(objective.full_precision, bits))
    with pytest.raises(ValueError, match=message):
        final_report(study, objective, graph, seeds=2, baselines={"mine": bits})
    assert FinalResult.load(study) is None


def test_a_new_best_trial_opens_the_test_nodes_again_and_says_so(study, objective, graph):
    final_report(study, objective, graph, seeds=2)
    study.enqueue_trial(objective.search_space.uniform_params(1))
    study.optimize(objective, n_trials=1)
    assert report(study).trial == 3
    assert report(study).final is None
    again = final_report(study, objective, graph, seeds=2)
    assert again.times_opened == 2


def test_with_a_budget_the_best_trial_is_measured_again_and_taken(trained_gcn, graph):
    objective = QuantizationObjective(
        trained_gcn, graph, mode="budget", budget_bytes=700, degree_edges=(2,), finetuning=FAST
    )
    study = create_study(objective, storage=optuna.storages.InMemoryStorage(), seed=0)
    for width in (8, 4, 2):
        study.enqueue_trial(objective.search_space.uniform_params(width))
    study.optimize(objective, n_trials=3)
    final = final_report(study, objective, graph, seeds=2)
    # 8 bits are above the budget.
    assert (final.trial, final.others, final.holds) == (report(study).trial, (), True)
    assert study.trials[0].value > 100 and final.trial != 0
    assert "holds" not in str(report(study))


def pretend(monkeypatch, expected):
    """Let fresh trainings expect a drop, in points, that depends on the widest site alone."""

    def measure(self, bits, count):
        drops = [expected[max(bits.values())] + 0.01 * at for at in range(count)]
        evidence = DropEvidence(tuple(drops), tuple(drops), 0.0, 100, {})
        counts.append(count)
        return FreshMeasurement(drops[0], evidence)

    counts = []
    monkeypatch.setattr(FreshTrainings, "measure", measure)
    return counts


def test_a_lucky_trial_that_does_not_hold_is_passed_over(study, objective, graph, monkeypatch):
    counts = pretend(monkeypatch, {2: 50.0, 4: 0.1, 8: 0.1})
    final = final_report(study, objective, graph, seeds=5)
    assert (final.trial, final.others, final.holds) == (2, (1,), True)
    # Three trainings refuse the first, five are made of what is taken.
    assert counts == [3, 3, 4, 5]
    assert final.validation_drop == pytest.approx(0.12)


def test_what_does_not_decide_is_trained_twice_as_often(study, objective, graph, monkeypatch):
    # The prior slope of 1 +- 0.7 bounds a drop f by f (1 + 1.2816 * 0.7): 2.637 is the limit.
    counts = pretend(monkeypatch, dict.fromkeys((2, 4, 8), 5.0 / (1 + 1.2816 * 0.7) - 0.005))
    final_report(study, objective, graph, seeds=2)
    assert counts[:3] == [2, 3, 4]


def test_if_nothing_holds_the_nearest_is_taken_and_told(study, objective, graph, monkeypatch):
    pretend(monkeypatch, {2: 50.0, 4: 40.0, 8: 45.0})
    final = final_report(study, objective, graph, seeds=2)
    assert (final.trial, final.holds) == (2, False)
    assert "does not hold" in str(report(study))


@pytest.mark.parametrize(
    ("row_value", "store"),
    [(None, "sparse codebook"), ("1/count", "sparse 1/count"), ("own", "sparse codebook")],
)
def test_a_store_other_than_packed_rows_is_told(study, row_value, store):
    assert "stored as" not in str(report(study))
    record = StudyRecord.load(study)
    widths = (1, 2, 4, 8)
    one = SparseContent(1, 1, 1, gap_bits=1)
    content = InputContent(dict.fromkeys((*widths, 32), one), widths, row_value)
    sizes = {
        site: replace(size, content=content)
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"conv9/embedding": 4},
            "of its 4 sites in trial 0, got one of conv9/embedding;",
        ),
        ({"conv1/embedding/bucket0": None}, "in trial 0, got none of conv1/embedding/bucket0;"),
    ],
)
def test_a_trial_of_other_sites_is_refused_by_name(change, message, tmp_path):
    study = new_study()
    trial = measured((4, 4, 4, 4), 0.1)
    widths = {**trial.user_attrs["bit_widths"], **change}
    widths = {name: width for name, width in widths.items() if width is not None}
    trial.set_user_attr("bit_widths", widths)
    study.add_trial(trial)
    for read in (report, lambda study: export_assignment(study, tmp_path / "a.json")):
        with pytest.raises(StudyMismatchError, match=f"study 'hand-made': expected .*{message}"):
            read(study)
    assert list(tmp_path.iterdir()) == []
