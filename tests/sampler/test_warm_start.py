"""Warm start from another study: which parameters correspond, and what it is worth."""

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution

from sgquant_optuna.sampler import SGQuantSampler
from sgquant_optuna.sampler.warm_start import corresponding_names
from tests.sampler.toy_study import SPACE, WIDTHS, drop_of, memory_of, new_sampler, objective


def test_a_warm_start_is_better_in_the_first_trials(study):
    def similar(trial):  # another graph: the same shape, half again as sensitive
        params = {name: trial.suggest_categorical(name, WIDTHS) for name in SPACE}
        violation = 1.5 * drop_of(params) - 1.0
        trial.set_constraint("0", violation)
        return memory_of(params) if violation <= 0 else 100 * (1 + violation)

    def mean_best(seed, *, is_warm):
        sampler = new_sampler(seed=seed)
        if is_warm:
            sampler.warm_start(study)
        run = optuna.create_study(sampler=sampler)
        run.optimize(similar, n_trials=6)
        return np.mean(np.minimum.accumulate([t.value for t in run.trials]))

    cold, warm = ([mean_best(seed, is_warm=w) for seed in range(3)] for w in (False, True))
    assert sum(warm) < sum(cold)


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


def test_a_study_of_another_metric_is_ignored_with_a_warning(study, caplog):
    memory = optuna.create_study()
    memory.add_trials(study.trials)
    memory.set_metric_names(["memory"])
    for name, warnings in (("memory", 0), ("drop", 1)):
        sampler = new_sampler()
        sampler.warm_start(memory)
        run = optuna.create_study(sampler=sampler)
        run.set_metric_names([name])
        run.optimize(objective, n_trials=1)
        assert caplog.text.count("do not correspond") == warnings


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
