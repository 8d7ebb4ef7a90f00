"""Searches on several splits of one graph: each model has its own, and drops are means."""

from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data

import sgquant_optuna as sgq
from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.splits import choose_split, split_graphs
from sgquant_optuna.graph.tasks.metrics import right_answers
from sgquant_optuna.graph.training import NODE_CLASSIFICATION
from sgquant_optuna.graph.training_config import TrainingConfig
from sgquant_optuna.packed import evaluation
from sgquant_optuna.search.drop_interval import OpenedTest
from sgquant_optuna.search.split_reference import SplitReference
from sgquant_optuna.storage import open_storage
from sgquant_optuna.study.drop_slope import DropSlope
from sgquant_optuna.study.loading import load_study
from sgquant_optuna.study.plan import SearchPlan
from sgquant_optuna.study.record import StudyRecord
from sgquant_optuna.study.rows import trial_rows
from tests.cli.test_commands import run
from tests.search.test_tasks import Sage, of_nodes
from tests.small_search import a_plan, prepare

SPLITS = 3


def with_splits(count=SPLITS):
    data = of_nodes(lambda z: (z[:, 0] > 0).long())
    for at, name in enumerate(("train_mask", "val_mask", "test_mask")):
        parts = [
            torch.rand(200, generator=torch.Generator().manual_seed(one)).argsort() % 3 == at
            for one in range(count)
        ]
        data[name] = torch.stack(parts, dim=1)
    return data


def trained(data, seed, split):
    torch.manual_seed(seed)
    model = Sage(data.num_features, 2)
    sgq.fit(model, choose_split(data, split), TrainingConfig(epochs=20), seed=seed)
    return model


OPTIONS = {
    "max_drop": 30.0,
    "granularity": "lwq",
    "candidates": (1, 2, 4, 8),
    "exact_inputs": False,
    "finetuning": TrainingConfig(epochs=2),
}


def test_drops_are_means_over_the_splits_and_a_shared_node_counts_once():
    # Four labelled nodes: split 0 measures on the nodes 1 and 2, split 1 on 2 and 3. The full
    # precision is right everywhere; the quantized models both lose node 2 and nothing else.
    y = torch.zeros(5, dtype=torch.long)
    graphs = []
    for train, val in (([0], [1, 2]), ([4], [2, 3])):
        masks = {"train_mask": train, "val_mask": val}
        graph = {name: torch.zeros(5, dtype=torch.bool) for name in masks}
        for name, nodes in masks.items():
            graph[name][nodes] = True
        graphs.append(Data(x=torch.eye(5), y=y, **graph))
    full = torch.tensor([[2.0, 0.0]]).repeat(5, 1)
    after = full.clone()
    after[2] = torch.tensor([0.0, 2.0])
    reference = SplitReference(
        NODE_CLASSIFICATION, [(full, 100.0), (full, 100.0)], graphs, splits=[0, 1]
    )
    assert reference.accuracy == 100
    classes = reference.predictions(after)
    evidence = reference.evidence([classes, classes])
    assert evidence.measured == (50.0, 50.0)  # one of two
    # The union has the nodes 1, 2, 3; all is lost at the second of them.
    assert evidence.nodes == 3
    assert set(evidence.lost) == {1}
    lost = evidence.lost_by_group()
    assert 100 * lost.sum() / evidence.nodes == pytest.approx(50)
    assert reference.flips([classes, classes]) == 25  # one of four outside training
    # After the first training alone.
    assert reference.evidence([classes]).measured == (50.0,)
    assert 100 * reference.evidence([classes]).lost_by_group().sum() / 3 == pytest.approx(50)
    slope = DropSlope.learned([(25.0, evidence)])
    assert slope.error > 0


def test_one_split_is_chosen_by_number_and_kept(tmp_path):
    data = with_splits()
    model = trained(data, 0, 1)
    objective = sgq.QuantizationObjective(model, data, split=1, **OPTIONS)
    alone = sgq.QuantizationObjective(model, choose_split(data, 1), **OPTIONS)
    assert objective.fingerprint == alone.fingerprint
    assert objective.fingerprint["protocol"]["split"] == 1
    assert objective.full_precision_accuracy == alone.full_precision_accuracy
    study = sgq.create_study(objective, storage=tmp_path / "s.db", study_name="s", seed=0)
    study.optimize(objective, n_trials=2)
    final = sgq.final_report(study, objective, data, seeds=2)
    assert len(final.quantized_test) >= 2
    other = sgq.QuantizationObjective(model, data, split=2, **OPTIONS)
    with pytest.raises(sgq.SgquantError, match=r"protocol \(split: was 1, is 2\)"):
        other.sign(study)


def test_without_a_choice_the_error_tells_how(tmp_path):
    data = with_splits()
    with pytest.raises(GraphError, match=r"3 splits: choose one by split=0 .*split='all'"):
        sgq.QuantizationObjective(Sage(8, 2), data, **OPTIONS)
    with pytest.raises(GraphError, match=r"3 splits: choose one by split=0"):
        sgq.fit(Sage(8, 2), data)


def test_all_splits_are_measured_each_by_its_own_model(tmp_path):
    data = with_splits()
    models = [trained(data, seed, seed) for seed in range(SPLITS)]
    objective = sgq.QuantizationObjective(models, data, split="all", **OPTIONS)
    each = [
        sgq.QuantizationObjective(model, data, split=split, **OPTIONS)
        for split, model in enumerate(models)
    ]
    mean = sum(one.full_precision_accuracy for one in each) / SPLITS
    assert objective.full_precision_accuracy == pytest.approx(mean)
    bits = objective.full_precision
    widths = sgq.BitWidths(dict.fromkeys(bits, 2))
    assert objective.measure(widths) == pytest.approx(
        sum(one.measure(widths) for one in each) / SPLITS
    )
    study = sgq.create_study(objective, storage=tmp_path / "s.db", study_name="s", seed=0)
    study.optimize(objective, n_trials=4)
    full = [row.result for row in trial_rows(study, sgq.TrialResult) if row.result.trainings == 3]
    assert full and all(
        one.accuracy_drop == pytest.approx(objective.full_precision_accuracy - one.accuracy)
        for one in full
    )
    assert StudyRecord.of(study).fingerprint["protocol"]["split"] == "all"
    asked = []

    def retrain(seed, split):
        asked.append((seed, split))
        return trained(data, seed, split)

    final = sgq.final_report(study, objective, data, seeds=2, retrain=retrain)
    assert final.seeds >= SPLITS or not final.holds
    assert asked[:3] == [(1000, 0), (1001, 1), (1002, 2)]
    low, high = final.test_drop_interval
    assert low <= final.test_drop <= high
    done = sgq.export_study(study, tmp_path / "m.sgq", objective=objective)
    assert done.reproduced_accuracy == pytest.approx(done.trial_accuracy)


def test_all_splits_need_a_model_each():
    data = with_splits()
    with pytest.raises(ValueError, match="one for each of the 3 splits with split='all', got 1"):
        sgq.QuantizationObjective(Sage(8, 2), data, split="all", **OPTIONS)


def test_no_search_sees_a_test_label_of_its_split():
    data = with_splits()
    objective = sgq.QuantizationObjective(
        [trained(data, seed, seed) for seed in range(SPLITS)], data, split="all", **OPTIONS
    )
    for graph, part in zip(objective.graphs, split_graphs(data, "all"), strict=True):
        assert "test_mask" not in graph.data
        assert bool((graph.data.y[part.test_mask] == -1).all())


def test_an_interval_on_splits_draws_the_items_of_the_graph():
    # 400 items, of which each of four splits tests three quarters; a tenth is lost everywhere.
    y = torch.zeros(400, dtype=torch.long)
    full = torch.tensor([[1.0, 0.0]]).repeat(400, 1)
    after = full.clone()
    after[::10] = torch.tensor([0.0, 1.0])
    at = torch.arange(400) // 10
    graphs = [Data(x=y[:, None], y=y, test_mask=at % 4 != one) for one in range(4)]
    opened = OpenedTest(NODE_CLASSIFICATION, graphs, [full] * 4, [after] * 4)
    assert opened.full_precision == (100.0,) * 4
    assert opened.quantized == pytest.approx((90.0,) * 4)
    low, high = opened.drop_interval()
    # As wide as 400 items make it, though 1,200 were tested: 1.96 * sqrt(0.1 * 0.9 / 400).
    assert (low, high) == pytest.approx((10 - 2.94, 10 + 2.94), abs=0.7)
    assert right_answers(after, y) == pytest.approx(90)


FILE = """
import torch
import sgquant_optuna as sgq
from tests.search.test_split_reference import with_splits
from tests.search.test_tasks import Sage


def study():
    return sgq.OwnStudy(data=with_splits(), model=lambda seed: Sage(8, 2){more})
"""
PLAN = (
    *("--epochs", "5", "--finetune-epochs", "1", "--models", "2", "--final-seeds", "2"),
    *("--granularity", "lwq", "--max-drop", "50", "--n-trials", "2", "--storage", "s.db"),
    *("--search-inputs", "--study", "mine.py", "--quiet"),
)


@pytest.mark.parametrize(
    ("more", "words", "split", "models"),
    [
        ("", ["--split", "2"], 2, 2),
        (", split=1", [], 1, 2),
        (", split=1", ["--split", "all"], "all", 3),
        (", split='all'", [], "all", 3),
    ],
)
def test_the_command_line_and_a_study_file_choose_a_split(
    more, words, split, models, capsys, monkeypatch, tmp_path
):
    Path("mine.py").write_text(FILE.format(more=more))
    code, out, err = run(capsys, "search", *PLAN, *words)
    assert code == 0, err
    study = load_study(storage=open_storage(tmp_path / "s.db"))
    plan = SearchPlan.load(study)
    assert (plan.split, plan.models) == (split, models)
    assert StudyRecord.of(study).fingerprint["protocol"]["split"] == split
    # A worker finds the same; another split is another study.
    code, out, err = run(capsys, "worker", "--storage", "s.db", "--study", "mine.py", "--quiet")
    assert code == 0, err
    code, out, err = run(capsys, "search", *PLAN, "--split", "0")
    assert code == 2 and "split: was" in err and "is 0" in err


@pytest.mark.parametrize(
    ("more", "words", "message"),
    [
        ("", [], "choose one by split=0 (--split 0)"),
        ("", ["--split", "3"], "split: expected a number from 0 to 2, got 3"),
        ("", ["--split", "-1"], "--split: expected the number of a split from 0, or 'all'"),
        (", split='any'", [], "expected the number of a split from 0, or 'all', got 'any'"),
        (", train=lambda model, seed: None", ["--split", "all"], "expected no train with all"),
    ],
)
def test_a_wrong_choice_is_one_line(more, words, message, capsys):
    Path("mine.py").write_text(FILE.format(more=more))
    code, out, err = run(capsys, "search", *PLAN, *words)
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err


def test_a_known_graph_with_one_split_has_none_to_choose(tmp_path):
    with pytest.raises(GraphError, match=r"choose split 1 of, got one split"):
        prepare(tmp_path, a_plan(split=1))


def test_a_packed_file_is_measured_on_the_split_of_its_model(monkeypatch):
    monkeypatch.setattr(evaluation, "load_graph", lambda *args, **options: with_splits())
    named = {"dataset": "Actor", "seed": 0}
    found = evaluation._graph("m.sgq", {**named, "split": 2}, None)
    assert found.val_mask.equal(with_splits().val_mask[:, 2])
    with pytest.raises(GraphError, match="split: expected a number from 0 to 2, got 7"):
        evaluation._graph("m.sgq", {**named, "split": 7}, None)
