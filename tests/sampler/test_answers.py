"""Warm start, other budgets from history, and explanations."""

import itertools

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from sampler_workers import SCALES, SPACE, WIDTHS, drop_of, memory_of, new_sampler, objective

from sgquant_optuna.sampler import SGQuantSampler, best_for, calibration, sensitivity
from sgquant_optuna.sampler.warm_start import corresponding_names


def least_memory(max_drop):
    return min(
        sum(w)
        for w in itertools.product(WIDTHS, repeat=len(SPACE))
        if drop_of(dict(zip(SPACE, w, strict=True))) <= max_drop
    )


def with_drop(trial):
    value = objective(trial)
    trial.set_user_attr("accuracy_drop", drop_of(trial.params))
    return value


@pytest.fixture(scope="module")
def study():
    study = optuna.create_study(sampler=new_sampler())
    study.optimize(with_drop, n_trials=60)
    return study


@pytest.mark.parametrize("max_drop", [0.5, 1.0, 2.0])
def test_another_limit_is_answered_from_history(study, max_drop):
    answer = best_for(study, known_objective=memory_of, max_drop=max_drop)
    assert drop_of(answer.params) <= max_drop * 1.2
    assert answer.memory == memory_of(answer.params) <= 1.25 * least_memory(max_drop)
    assert answer.probability >= 0.9
    assert abs(answer.drop - drop_of(answer.params)) < 0.3


def test_a_memory_budget_is_kept(study):
    answer = best_for(study, known_objective=memory_of, budget_bytes=20)
    assert answer.memory <= 20
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


def test_predictions_are_stored_when_a_trial_is_suggested(study):
    assert "predicted" not in study.trials[9].user_attrs
    predicted = study.trials[10].user_attrs["predicted"]
    assert set(predicted) == {"constraint 0", "constraint 0 deviation", "feasible"}
    assert 0 <= predicted["feasible"] <= 1


def test_calibration_pairs_predictions_with_measurements(study):
    pairs = calibration(study, "constraint 0")
    assert pairs.numbers.tolist() == list(range(10, 60))
    np.testing.assert_allclose(pairs.measured[0], study.trials[10].constraints["0"])
    error = np.abs(pairs.predicted - pairs.measured)
    assert np.median(error) < 0.5 * np.median(np.abs(pairs.measured - pairs.measured.mean()))
    assert pairs.coverage > 0.6


def test_calibration_of_a_study_without_predictions_is_empty():
    pairs = calibration(optuna.create_study(), "objective 0")
    assert len(pairs.numbers) == 0
    assert np.isnan(pairs.coverage)


def test_sensitivity_orders_sites_by_what_they_cost(study):
    entries = sensitivity(study, "constraint 0")
    names = [entry.name for entry in entries]
    most = f"site{int(np.argmax(SCALES))}"
    least = f"site{int(np.argmin(SCALES))}"
    assert names.index(most) < names.index(least)
    assert entries[0].choices == WIDTHS
    assert entries[0].expected[0] > entries[0].expected[-1]  # fewer bits, larger drop


@pytest.mark.parametrize("target", ["drop", "objective x", "constraint"])
def test_unknown_targets_are_refused(study, target):
    with pytest.raises(ValueError, match="target: expected 'objective 0' or 'constraint 0'"):
        calibration(study, target)


def test_a_warm_start_is_better_in_the_first_trials(study):
    def similar(trial):  # another graph: the same shape, half again as sensitive
        params = {name: trial.suggest_categorical(name, WIDTHS) for name in SPACE}
        violation = 1.5 * drop_of(params) - 1.0
        trial.set_constraint("0", violation)
        return memory_of(params) if violation <= 0 else 100 * (1 + violation)

    cold = optuna.create_study(sampler=new_sampler(seed=1))
    cold.optimize(similar, n_trials=10)
    sampler = new_sampler(seed=1)
    sampler.warm_start(study)
    warm = optuna.create_study(sampler=sampler)
    warm.optimize(similar, n_trials=10)
    assert warm.best_value < cold.best_value


def test_a_warm_started_study_is_the_same_after_resuming(study):
    def configurations(trials_at_once):
        run = optuna.create_study()
        while len(run.trials) < 12:
            run.sampler = new_sampler()
            run.sampler.warm_start(study)
            run.optimize(objective, n_trials=trials_at_once)
        return [t.params for t in run.trials]

    assert configurations(4) == configurations(12)


def test_a_study_that_does_not_correspond_is_ignored_with_a_warning(caplog):
    other = optuna.create_study()
    other.optimize(lambda t: t.suggest_int("unrelated", 0, 9), n_trials=3)
    sampler = new_sampler()
    sampler.warm_start(other)
    run = optuna.create_study(sampler=sampler)
    run.optimize(objective, n_trials=12)
    cold = optuna.create_study(sampler=new_sampler())
    cold.optimize(objective, n_trials=12)
    assert [t.params for t in run.trials] == [t.params for t in cold.trials]
    assert caplog.text.count("do not correspond") == 1


def test_a_study_without_trials_teaches_nothing():
    with pytest.raises(ValueError, match="expected complete trials in study"):
        SGQuantSampler(SPACE).warm_start(optuna.create_study())


def test_sites_of_a_deeper_network_match_by_relative_position():
    own = ["conv1/embedding", "conv2/embedding", "conv3/embedding", "conv3/attention"]
    source = ["gat1/embedding", "gat2/embedding", "gat2/attention"]
    assert corresponding_names(own, source) == {
        "conv1/embedding": "gat1/embedding",
        "conv2/embedding": "gat1/embedding",
        "conv3/embedding": "gat2/embedding",
        "conv3/attention": "gat2/attention",
    }


def test_the_tenth_layer_comes_after_the_ninth():
    own = [f"conv{i}/embedding" for i in range(1, 11)]
    source = [f"gin{i}/embedding" for i in range(1, 11)]
    matches = corresponding_names(own, source)
    assert matches == dict(zip(own, source, strict=True))


def test_buckets_match_their_own():
    own = ["a/embedding/bucket0", "a/embedding/bucket1"]
    source = ["b/embedding/bucket0", "b/embedding/bucket1"]
    assert corresponding_names(own, source) == dict(zip(own, source, strict=True))


def test_a_component_that_the_source_lacks_has_no_counterpart():
    assert corresponding_names(["a/attention"], ["b/embedding"]) is None


def test_choices_of_the_source_that_are_not_on_the_grid_are_left_out(study):
    space = {name: CategoricalDistribution([2, 4, 8]) for name in SPACE}
    sampler = SGQuantSampler(space, known_objective=memory_of, seed=0)
    sampler.warm_start(study)
    run = optuna.create_study(sampler=sampler)
    trial = run.ask(space)
    assert set(trial.params.values()) <= {2, 4, 8}
