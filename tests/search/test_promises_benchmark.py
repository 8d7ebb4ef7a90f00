"""The arithmetic of the benchmark of promises."""

from pathlib import Path

import numpy as np
import pytest

from sgquant_optuna.study.drop_evidence import DropEvidence

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NODES = 12


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def table():
    """Full precision says class 0 everywhere, by a score of 1; so do labels.

    Of the two configurations, training 0 changes all nodes in the first, training 1 none.
    """
    from prediction_table import PredictionTable, rounded

    scores = rounded(np.tile(np.array([3.0, 2.0, -33.0], dtype=np.float32), (2, NODES, 1)))
    classes = np.zeros((2, 2, NODES), dtype=np.int8)
    classes[0, 0] = 1
    memory = np.array([1000.0, 2000.0])
    return PredictionTable("gcn", "made", scores, classes, memory, "the test", {"epochs": 3})


def drawn(table, seed=0):
    from promise_rules import draw

    outside = np.arange(NODES) >= 2
    generator = np.random.default_rng(seed)
    labels = np.zeros(NODES, dtype=np.int64)
    return draw(table, labels, outside, generator, num_labels=5, num_trainings=1)


def test_a_table_is_read_as_it_was_written(table, tmp_path):
    from prediction_table import PredictionTable

    table.save(tmp_path / "t.npz")
    read = PredictionTable.load(tmp_path / "t.npz")
    assert read.scores[0, 0].tolist() == [0.0, -1.0, -36.0]
    for name in ("scores", "classes", "memory"):
        np.testing.assert_array_equal(getattr(read, name), getattr(table, name))
    assert (read.name, read.command, read.training) == ("gcn made", "the test", {"epochs": 3})


def test_a_tie_of_scores_does_not_change_the_class():
    from prediction_table import rounded

    scores = np.array([[[1.0, 1.0, 0.0]]])
    assert rounded(scores)[0, 0].tolist() == [0.0, -((1 / 16) ** 2), -1.0]


@pytest.mark.parametrize("seed", range(4))
def test_the_truth_is_that_of_the_trainings_which_are_not_seen(table, seed):
    one = drawn(table, seed)
    sees_the_changes = one.seen_drop[0] == 100.0
    assert one.true_drop.tolist() == [0.0 if sees_the_changes else 100.0, 0.0]
    flips, evidence = one.trials[0]
    assert flips == (100.0 if sees_the_changes else 0.0)
    assert (evidence.nodes, evidence.measured) == (5, (flips,))


def test_a_promise_is_broken_where_the_chosen_one_loses_more(table):
    from promise_rules import choose, judge

    one = next(one for one in (drawn(table, s) for s in range(9)) if one.seen_drop[0] == 0)
    assert judge(lambda _: np.array([0.5, 0.1]), one, table.memory, 0.5) == (True, 0.5)
    assert judge(lambda _: np.array([0.6, 0.1]), one, table.memory, 0.5) == (False, 1.0)
    assert choose(np.array([9.0, 8.0]), table.memory, 0.5) == 1  # the largest, where none holds


def test_rules_bound_what_they_say():
    from promise_rules import RULES, Draw

    lost = np.array([1] * 4 + [0] * 96)
    evidence = DropEvidence.of([2.0], [lost], 0.5)
    one = Draw([(3.0, evidence)], true_drop=np.array([9.0]), seen_drop=np.array([8.0]))
    found = {name: float(rule(one)[0]) for name, rule in RULES.items()}
    z, z95 = 1.28155, 1.64485
    error = (96 / 99 + 0.64) ** 0.5  # of the slope 2, as in the tests of DropSlope
    precision = 1 / error**2 + 1 / 0.49
    slope = (2 / error**2 + 1 / 0.49) / precision
    weak = 1 / error**2 + 1  # precision with a prior of 1 ± 1
    assert found == pytest.approx(
        {
            "validation drop": 4.0,
            "validation drop + 1.645 standard errors": 4 + z95 * (0.04 * 0.96 / 99) ** 0.5 * 100,
            "flips x (slope + z errors), 90 %": 2 * (2 + z * error),  # of one trial, any measure
            "expected drop f alone": 2.0,
            "f x (slope + z errors), 90 %": 2 * (2 + z * error),
            "ours without prior, 90 %": 4 + z * np.hypot(2 * error, 0.5),
            "ours with a prior of 1 ± 1, 90 %": (4 / error**2 + 2) / weak
            + z * np.hypot(2 * weak**-0.5, 0.5),
            "ours with a doubt of 0.04 a flip, 90 %": 2 * slope
            + z * np.sqrt(4 / precision + 0.5**2 + 0.12**2),
            "ours without luck of the nodes, 90 %": 2 * (slope + z * precision**-0.5),
            "ours, 80 %": 2 * slope + 0.84162 * np.hypot(2 * precision**-0.5, 0.5),
            "ours, 90 %": 2 * slope + z * np.hypot(2 * precision**-0.5, 0.5),
            "**ours, 95 %**": 2 * slope + z95 * np.hypot(2 * precision**-0.5, 0.5),
            "ours with the true slope (unknowable), 90 %": 9.0 + z * 0.5,
            "drop on all other nodes (unknowable)": 8.0,
        },
        abs=1e-3,
    )


def test_kept_promises_are_counted_among_those_that_were_made():
    from promise_searches import Choice, kept

    choices = [Choice(True, 0.5, 1), Choice(True, 0.6, 1), Choice(False, 0.1, 1)]
    assert kept(choices, 0.5) == (2, 1)
