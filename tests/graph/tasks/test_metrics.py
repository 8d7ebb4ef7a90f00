"""Metrics against numbers made by hand and against scikit-learn."""

import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from sgquant_optuna.exceptions import TaskError
from sgquant_optuna.graph.tasks import (
    Metric,
    hits,
    macro_roc_auc,
    mean_absolute_error,
    micro_f1,
    mrr,
    right_answers,
    roc_auc,
    root_mean_squared_error,
)

SCORES = torch.tensor([3.0, 1.0, 2.0, 0.0])
LABELS = torch.tensor([1.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        (roc_auc, 75.0),  # three of four pairs
        (mrr, 100 * (1 + 1 / 2) / 2),  # ranks 1 and 2
        (hits(1), 50.0),
        (hits(2), 100.0),
    ],
)
def test_links_are_ranked_among_all_negatives(metric, value):
    assert metric(SCORES, LABELS) == pytest.approx(value)


def test_ties_count_half():
    scores = torch.tensor([1.0, 1.0])
    labels = torch.tensor([1.0, 0.0])
    assert roc_auc(scores, labels) == 50.0
    assert mrr(scores, labels) == pytest.approx(100 / 1.5)


def test_errors_are_those_of_the_definition():
    outputs, values = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 5.0])
    assert mean_absolute_error(outputs, values) == 1.5
    assert root_mean_squared_error(outputs, values) == pytest.approx(4.5**0.5)
    assert mean_absolute_error.drop(1.0, 1.5) == 0.5
    assert right_answers.drop(90.0, 80.0) == 10.0


def test_scores_of_labels_equal_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 5, generator=generator).round(decimals=1)
    labels = (torch.rand(200, 5, generator=generator) < 0.3).long()
    expected = 100 * f1_score(labels, scores > 0, average="micro")
    assert micro_f1(scores, labels) == pytest.approx(expected)
    assert macro_roc_auc(scores, labels) == pytest.approx(100 * roc_auc_score(labels, scores))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "good", torch.zeros(2)])
def test_a_metric_without_a_finite_number_is_refused_by_name(value):
    with pytest.raises(TaskError, match="metric mine: expected a .*number"):
        Metric("mine", lambda outputs, targets: value)(SCORES, LABELS)


def test_a_metric_is_a_function_or_a_metric():
    assert Metric.of(mrr) is mrr
    assert Metric.of(max).name == "max"
    with pytest.raises(TaskError, match="got int"):
        Metric.of(3)
