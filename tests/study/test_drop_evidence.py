import json

import numpy as np
import pytest

from sgquant_optuna.study.drop_evidence import MAX_GROUPS, DropEvidence


def test_what_two_trainings_lose_is_summed_by_node():
    lost = [np.array([1, 0, -1, 0]), np.array([1, 1, 0, 0])]
    evidence = DropEvidence.of([2.0, 3.0], lost, 0.5)
    assert evidence.lost == {0: 2, 1: 1, 2: -1}
    assert evidence.measured == (0.0, 50.0)
    assert (evidence.trainings, evidence.nodes, evidence.expected_drop) == (2, 4, 2.5)
    assert evidence.lost_by_group().tolist() == [1.0, 0.5, -0.5, 0.0]


def test_many_labelled_nodes_share_groups():
    lost = np.zeros(2 * MAX_GROUPS + 1, dtype=np.int64)
    lost[[0, MAX_GROUPS, 2 * MAX_GROUPS, 7]] = 1
    evidence = DropEvidence.of([1.0], [lost], 0.0)
    assert evidence.lost == {0: 3, 7: 1}
    assert evidence.lost_by_group().sum() / evidence.nodes * 100 == evidence.measured[0]


def test_it_is_read_as_it_was_written():
    evidence = DropEvidence.of([2.0], [np.array([1, 0, -1])], 0.5)
    assert DropEvidence.from_dict(json.loads(json.dumps(evidence.to_dict()))) == evidence


@pytest.mark.parametrize(("key", "value"), [("expected", []), ("groups", [9, 1]), ("nodes", 1)])
def test_what_cannot_be_is_refused(key, value):
    values = {**DropEvidence.of([2.0], [np.array([1, 0, -1])], 0.5).to_dict(), key: value}
    with pytest.raises(ValueError, match="expected trainings, and groups below"):
        DropEvidence.from_dict(values)
