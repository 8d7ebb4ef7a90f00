import pytest
import torch
from torch_geometric.data import Data

from sgquant_optuna.search.prediction_changes import ReferencePredictions


@pytest.fixture
def data():
    """One node to train on, four labelled ones, two without a label."""
    return Data(
        y=torch.tensor([0, 0, 1, 1, 0, -1, -1]),
        train_mask=torch.tensor([True, *[False] * 6]),
        val_mask=torch.tensor([False, True, True, True, True, False, False]),
    )


def log(probabilities):
    return torch.tensor([[p, 1 - p] for p in probabilities]).log()


# At four labelled nodes 0.75 is right three times of four: no temperature fits better than 1.
SCORES = log([0.5, 0.75, 0.25, 0.25, 0.25, 0.75, 0.6])


@pytest.fixture
def reference(data):
    return ReferencePredictions([SCORES], [75.0], data.y, data)


def test_nothing_changes_against_itself(reference):
    classes = [SCORES.argmax(dim=1)]
    assert reference.flips(classes) == 0
    evidence = reference.evidence(classes)
    assert (evidence.expected, evidence.measured, evidence.deviation) == ((0.0,), (0.0,), 0.0)


def test_expected_and_measured_drops_by_hand(reference):
    # Of the six nodes outside training change: node 1 (right before), node 4 (wrong before) and
    # node 6, which has no label. Expected: (0.5 + 0.5 + 0.2) / 6; measured: (1 - 1) / 4.
    classes = SCORES.argmax(dim=1)
    classes[[0, 1, 4, 6]] = 1 - classes[[0, 1, 4, 6]]
    assert reference.flips([classes]) == pytest.approx(50.0)
    evidence = reference.evidence([classes])
    assert evidence.expected == (pytest.approx(100 * 1.2 / 6, abs=0.01),)
    assert evidence.measured == (0.0,)
    assert evidence.lost == {0: 1, 3: -1}
    # A flip with probabilities p and 1 - p gives 1 or -1: 4 p (1 - p), that is 0.75, 0.75, 0.96.
    assert evidence.deviation == pytest.approx(100 * 2.46**0.5 / 6, abs=0.01)


def test_the_deviation_of_a_mean_over_trainings_counts_each_node_once(data):
    reference = ReferencePredictions([SCORES, SCORES], [75.0, 75.0], data.y, data)
    one, other = SCORES.argmax(dim=1), SCORES.argmax(dim=1)
    one[1], other[4] = 1 - one[1], 1 - other[4]
    # Each training flips another node, so half a flip at each: 2 * 0.75 / 4.
    deviation = reference.evidence([one, other]).deviation
    assert deviation == pytest.approx(100 * 0.375**0.5 / 6, abs=0.01)


def test_scores_that_are_too_sure_are_cooled(data):
    # Ten times as sure, and right as often: the temperature makes the same probabilities.
    classes = SCORES.argmax(dim=1)
    classes[1] = 1 - classes[1]
    sure = ReferencePredictions([10 * SCORES], [75.0], data.y, data).evidence([classes])
    plain = ReferencePredictions([SCORES], [75.0], data.y, data).evidence([classes])
    assert sure.expected == pytest.approx(plain.expected, rel=1e-3)


def test_labels_of_other_nodes_do_not_matter(data, reference):
    classes = [1 - SCORES.argmax(dim=1)]
    data.y[[5, 6]] = 1
    other = ReferencePredictions([SCORES], [75.0], data.y, data)
    assert other.evidence(classes) == reference.evidence(classes)
