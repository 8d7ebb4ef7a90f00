"""The sequence of rounds in one process: determinism, resumption, retries and enqueued trials."""

import optuna
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from sgquant_optuna.sampler import SGQuantSampler
from sgquant_optuna.sampler.claims import CLAIM_KEY
from tests.sampler.toy_study import (
    SPACE,
    WIDTHS,
    claims,
    configuration,
    configurations,
    drop_of,
    new_sampler,
    objective,
    run,
)


def test_rounds_are_as_long_as_n_measure():
    study = run(20, n_measure=4)
    assert [c.round for c in claims(study)] == [number // 4 for number in range(20)]


def test_the_paper_measures_ten_in_each_round_by_default():
    study = run(21, "paper")
    assert [c.round for c in claims(study)] == [number // 10 for number in range(21)]


def test_a_lone_worker_learns_from_every_trial_at_first_and_later_from_every_second():
    study = run(64)
    assert [c.round for c in claims(study)] == [*range(59), 59, 59, 60, 60, 61]


def test_each_of_three_workers_joins_a_round_once():
    study = optuna.create_study(sampler=new_sampler())
    running = [study.ask(SPACE) for _ in range(3)]
    for _ in range(9):
        trial = running.pop(0)
        study.tell(trial, drop_of(trial.params))
        running.append(study.ask(SPACE))
    assert [c.round for c in claims(study)] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    # The opener of the last round saw two trials of the round before.
    assert claims(study)[-3].opening.unfinished == (7, 8, 9)


def test_the_same_seed_gives_the_same_trials(acquisition):
    assert configurations(run(25, acquisition)) == configurations(run(25, acquisition))


def test_another_seed_gives_other_trials():
    assert configurations(run(10)) != configurations(run(10, seed=1))


def test_a_resumed_study_equals_an_uninterrupted_one(acquisition):
    study = optuna.create_study()
    for _ in range(9):  # a new sampler every three trials, never at the end of a round
        study.sampler = new_sampler(acquisition=acquisition)
        study.optimize(objective, n_trials=3)
    assert configurations(study) == configurations(run(27, acquisition))


def test_nothing_is_measured_twice(acquisition):
    found = configurations(run(60, acquisition))
    assert len(set(found)) == 60


def test_threads_share_one_sampler_without_repeating(tmp_path):
    study = optuna.create_study(sampler=new_sampler())
    study.optimize(objective, n_trials=60, n_jobs=4)
    assert len(set(configurations(study))) == 60


def test_asking_ten_before_telling_equals_a_first_round_of_ten():
    study = optuna.create_study(sampler=new_sampler())
    asked = [study.ask(SPACE) for _ in range(10)]
    expected = configurations(run(10, n_measure=10))
    assert [configuration(t) for t in asked] == expected


def test_rounds_advance_without_waiting_for_unfinished_trials():
    study = optuna.create_study(sampler=new_sampler(n_measure=4))
    pending = [study.ask(SPACE) for _ in range(2)]
    study.optimize(objective, n_trials=5)
    assert [c.round for c in claims(study)] == [0, 0, 0, 0, 0, 0, 1]
    assert claims(study)[-1].opening.unfinished == (pending[0].number, pending[1].number, 6)


def queue_copy(study, trial):
    """Queue a failed trial again, as a heartbeat does."""
    attributes = {CLAIM_KEY: trial.system_attrs[CLAIM_KEY]}
    study.add_trial(optuna.create_trial(state=TrialState.WAITING, system_attrs=attributes))


def test_a_retried_trial_measures_its_own_configuration_again():
    study = run(3)
    killed = study.ask(SPACE)
    study.tell(killed, state=TrialState.FAIL)
    queue_copy(study, study.trials[-1])
    study.optimize(objective, n_trials=1)
    assert study.trials[-1].params == killed.params


def test_a_trial_killed_before_it_saw_an_equal_claim_measures_another_configuration():
    study = run(2)
    queue_copy(study, study.trials[0])  # whose rival, trial 0, has it
    study.optimize(objective, n_trials=2)
    assert len(study.trials) == len(set(configurations(study))) == 4


def test_an_enqueued_trial_is_measured_as_it_is_and_never_proposed_again():
    first = configurations(run(1))[0]
    study = optuna.create_study(sampler=new_sampler())
    study.enqueue_trial(dict(zip(SPACE, first, strict=True)))
    study.optimize(objective, n_trials=12)
    assert configurations(study)[0] == first
    assert claims(study)[0] is None
    assert configurations(study).count(first) == 1


def test_parameters_that_were_enqueued_are_kept_in_what_is_claimed():
    study = run(12)
    study.enqueue_trial({"site0": 16, "site3": 1})
    study.optimize(objective, n_trials=1)
    last = study.trials[-1]
    assert (last.params["site0"], last.params["site3"]) == (16, 1)
    names = list(SPACE)
    claimed = claims(study)[-1].index
    assert (claimed[names.index("site0")], claimed[names.index("site3")]) == (4, 0)
    assert tuple(WIDTHS[i] for i in claimed) == configuration(last)


def test_partial_fixed_sampler_repeats_nothing():
    study = run(12)
    study.sampler = optuna.samplers.PartialFixedSampler({"site1": 8}, study.sampler)
    study.optimize(objective, n_trials=12)
    assert all(t.params["site1"] == 8 for t in study.trials[12:])
    assert len(set(configurations(study))) == 24


def test_an_exhausted_space_is_repeated_without_an_error(acquisition):
    space = {"a": IntDistribution(0, 2), "b": CategoricalDistribution([None, "x", True])}
    study = optuna.create_study(
        sampler=SGQuantSampler(space, n_measure=3, acquisition=acquisition, seed=0)
    )
    study.optimize(
        lambda t: (
            t.suggest_int("a", 0, 2) + len(str(t.suggest_categorical("b", [None, "x", True])))
        ),
        n_trials=14,
    )
    found = [tuple(t.params.values()) for t in study.trials]
    assert len(set(found[:9])) == 9
    assert len(found) == 14
