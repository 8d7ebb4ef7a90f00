"""Answers for other budgets from the history of a study."""

import itertools

import optuna
import pytest

from sgquant_optuna.sampler import best_for
from tests.sampler.toy_study import SPACE, WIDTHS, drop_of, memory_of, new_sampler


def least_memory(max_drop):
    return min(
        sum(w)
        for w in itertools.product(WIDTHS, repeat=len(SPACE))
        if drop_of(dict(zip(SPACE, w, strict=True))) <= max_drop
    )


@pytest.mark.parametrize("max_drop", [0.5, 1.0, 2.0])
def test_another_limit_is_answered_from_history(study, max_drop):
    answer = best_for(study, known_objective=memory_of, max_drop=max_drop)
    assert drop_of(answer.params) <= max_drop * 1.2
    assert answer.memory == memory_of(answer.params) <= 1.25 * least_memory(max_drop)
    assert answer.probability >= 0.9
    assert abs(answer.drop - drop_of(answer.params)) < 0.3


def test_a_memory_budget_is_kept(study):
    answer = best_for(study, known_objective=memory_of, budget_bytes=20)
    assert answer.memory == 20  # it is used up
    best = min(
        drop_of(p)
        for w in itertools.product(WIDTHS, repeat=len(SPACE))
        for p in [dict(zip(SPACE, w, strict=True))]
        if sum(w) <= 20
    )
    assert drop_of(answer.params) <= best + 1.0


def test_only_measured_configurations_can_be_asked_for(study):
    answer = best_for(study, known_objective=memory_of, max_drop=1.0, measured_only=True)
    assert answer.trials
    assert study.trials[answer.trials[0]].params == answer.params


def test_an_impossible_budget_has_no_answer(study):
    assert best_for(study, known_objective=memory_of, budget_bytes=1) is None


def test_more_confidence_never_costs_less_memory(study):
    memory = [
        best_for(
            study, known_objective=memory_of, max_drop=1.0, confidence=c, measured_only=True
        ).memory
        for c in (0.5, 0.9, 0.99)
    ]
    assert memory == sorted(memory)


def test_two_objectives_are_answered_from_their_values():
    study = optuna.create_study(directions=["minimize"] * 2, sampler=new_sampler())

    def two(trial):
        params = {name: trial.suggest_categorical(name, WIDTHS) for name in SPACE}
        return memory_of(params), drop_of(params)

    study.optimize(two, n_trials=30)
    assert best_for(study, known_objective=memory_of, max_drop=3.0) is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of budget_bytes and max_drop"),
        ({"budget_bytes": 1, "max_drop": 1}, "exactly one of budget_bytes and max_drop"),
        ({"max_drop": 1, "confidence": 1.0}, r"confidence: expected a number in \(0, 1\)"),
        ({"max_drop": 1, "drop_of": lambda trial: None}, "two complete trials with a drop, got 0"),
    ],
)
def test_questions_without_a_meaning_are_refused(study, options, message):
    with pytest.raises(ValueError, match=message):
        best_for(study, known_objective=memory_of, **options)
