"""Other limits, answered from trials made by hand in which the first site alone matters."""

import io
import json

import numpy as np
import optuna
import pytest
from rich.console import Console

from sgquant_optuna.exceptions import StudyNotFoundError
from sgquant_optuna.study.answers import answer
from tests.hand_made import measured, new_study


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(0)
    study = new_study()
    for _ in range(30):
        widths = tuple(int(w) for w in rng.choice((1, 2, 4, 8), 4))
        study.add_trial(measured(widths, 4.0 / widths[0]))
    return study


def shown(found):
    console = Console(file=io.StringIO(), width=120)
    console.print(found)
    return console.file.getvalue()


def test_a_budget_is_used_up_where_it_matters(study):
    # A site of 500 * 64 values takes 4,000 bytes a bit: 8 + 1 + 1 + 1 bits fit, and a bit more.
    found = answer(study, budget_bytes=48_200.0)
    assert next(iter(found.bits.values())) == 8
    assert found.memory.memory_bytes == 12 * 4000 + 4 * 8 + 125
    assert abs(found.answer.drop - 0.5) < 0.2
    text = shown(found)
    assert "hand-made: bits for a budget of 0.048 MB" in text
    assert "0.048 MB, 10.6x smaller, 99.9% of the budget" in text
    bound = found.answer.drop + 1.645 * found.answer.drop_deviation
    assert f"{bound:.2f} points" in text and "probability" not in text
    assert json.loads(found.to_json())["probability"] is None


def test_another_drop_is_answered_with_its_probability(study):
    found = answer(study, max_drop=2.1)
    assert next(iter(found.bits.values())) == 2
    assert found.answer.probability >= 0.9
    described = json.loads(found.to_json())
    assert described["max_drop"] == 2.1 and described["budget_bytes"] is None
    assert described["bit_widths"] == found.bits.to_dict()
    assert described["memory_bytes"] == found.memory.memory_bytes
    assert f"{found.answer.probability:.0%} that the drop is at most 2.1" in shown(found)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"budget_bytes": 100.0}, r"at least the smallest assignment, 0.016 MB \(16,157 bytes\)"),
        ({"max_drop": 0.01}, "keeps with a probability of 0.9, got 0.01 points; allow more"),
        ({}, "exactly one of budget_bytes and max_drop"),
    ],
)
def test_what_has_no_answer_is_told(study, asked, message):
    with pytest.raises(ValueError, match=message):
        answer(study, **asked)


def test_a_study_of_another_objective_has_no_answers():
    with pytest.raises(StudyNotFoundError):
        answer(optuna.create_study(), max_drop=1.0)
