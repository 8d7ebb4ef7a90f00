"""The sequence of rounds in one process: determinism, resumption, foreign and failed trials."""

import copy
import pickle

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from sampler_workers import SPACE, WIDTHS, memory_of, new_sampler, objective

from sgquant_optuna.sampler import SGQuantSampler
from sgquant_optuna.sampler.claims import CLAIM_KEY, Claim


def configuration(trial):
    return tuple(trial.params[name] for name in SPACE)


def configurations(study):
    return [configuration(t) for t in study.trials]


def claims(study):
    return [Claim.of(t.system_attrs) for t in study.trials]


@pytest.fixture(params=["default", "paper"])
def acquisition(request):
    return request.param


def run(n_trials, acquisition="default", **options):
    study = optuna.create_study(sampler=new_sampler(acquisition=acquisition, **options))
    study.optimize(objective, n_trials=n_trials)
    return study


def test_rounds_are_as_long_as_n_measure():
    study = run(20, n_measure=4)
    assert [c.round for c in claims(study)] == [number // 4 for number in range(20)]


def test_the_paper_measures_ten_in_each_round_by_default():
    study = run(21, "paper")
    assert [c.round for c in claims(study)] == [number // 10 for number in range(21)]


def test_the_default_fits_every_five_trials_after_the_first_ten():
    study = run(21)
    expected = [0] * 10 + [1] * 5 + [2] * 5 + [3]
    assert [c.round for c in claims(study)] == expected


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


def test_asking_ten_before_telling_equals_the_first_round():
    study = optuna.create_study(sampler=new_sampler())
    asked = [study.ask(SPACE) for _ in range(10)]
    expected = configurations(run(10))
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


def test_trials_added_by_hand_are_learned_from_and_not_repeated():
    source = run(15)
    study = optuna.create_study(sampler=new_sampler())
    for trial in source.trials:
        study.add_trial(
            optuna.create_trial(
                params=trial.params, distributions=trial.distributions, value=trial.value
            )
        )
    study.optimize(objective, n_trials=10)
    assert claims(study)[15].round == 1  # they stand in for the random round
    assert len(set(configurations(study))) == 25


def test_trials_of_another_space_change_nothing():
    study = optuna.create_study(sampler=new_sampler())
    for value in range(12):
        study.add_trial(
            optuna.create_trial(
                params={"x": 3}, distributions={"x": IntDistribution(0, 5)}, value=value
            )
        )
    study.optimize(objective, n_trials=15)
    assert [configuration(t) for t in study.trials[12:]] == configurations(run(15))


def test_a_failed_trial_counts_for_nothing_and_is_not_proposed_again():
    def sometimes_fails(trial):
        value = objective(trial)
        if trial.number in (2, 11):
            raise ArithmeticError
        return value

    study = optuna.create_study(sampler=new_sampler(n_measure=5))
    study.optimize(sometimes_fails, n_trials=13, catch=ArithmeticError)
    assert [c.round for c in claims(study)] == [0] * 6 + [1] * 5 + [2] * 2
    assert len(set(configurations(study))) == 13


def test_a_pruned_trial_counts_as_measured_but_is_not_learned_from():
    def prunes(trial):
        objective(trial)
        trial.report(1.0, step=1)
        raise optuna.TrialPruned

    study = optuna.create_study(sampler=new_sampler(n_measure=5))
    study.optimize(prunes, n_trials=12)
    assert [c.round for c in claims(study)] == [0] * 5 + [1] * 5 + [2] * 2


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan"), 1e308, -1e308])
def test_values_that_are_not_finite_or_huge_do_not_end_the_study(bad, acquisition):
    def wild(trial):
        value = sum(trial.suggest_categorical(name, WIDTHS) for name in SPACE)
        return bad if trial.number % 3 == 0 else float(value)

    study = optuna.create_study(
        sampler=SGQuantSampler(SPACE, n_measure=4, n_sample=200, acquisition=acquisition, seed=0)
    )
    study.optimize(wild, n_trials=16)
    assert len(set(configurations(study))) == 16


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


def test_a_huge_space_is_sampled_without_listing_it(acquisition):
    space = {f"x{i}": IntDistribution(0, 10**6) for i in range(30)}
    study = optuna.create_study(
        sampler=SGQuantSampler(space, n_measure=3, n_sample=50, acquisition=acquisition, seed=0)
    )
    study.optimize(
        lambda t: sum(t.suggest_int(n, d.low, d.high) for n, d in space.items()), n_trials=8
    )
    assert len(study.trials) == 8


def test_floats_without_a_step_go_to_the_independent_sampler():
    space = {"width": IntDistribution(1, 8), "rate": FloatDistribution(0, 1)}
    study = optuna.create_study(sampler=SGQuantSampler(space, seed=0))
    study.optimize(
        lambda t: t.suggest_int("width", 1, 8) + t.suggest_float("rate", 0, 1), n_trials=15
    )
    assert len({t.params["rate"] for t in study.trials}) == 15


def test_one_sampler_serves_several_studies_of_one_storage():
    sampler = new_sampler()
    storage = optuna.storages.InMemoryStorage()
    studies = [optuna.create_study(storage=storage, sampler=sampler) for _ in range(2)]
    other = optuna.create_study(sampler=sampler)
    for _ in range(12):
        for study in (*studies, other):
            study.optimize(objective, n_trials=1)
    expected = configurations(run(12))
    assert [configurations(s) for s in (*studies, other)] == [expected] * 3


def test_a_study_that_was_deleted_and_made_again_starts_anew():
    storage, sampler = optuna.storages.InMemoryStorage(), new_sampler()
    study = optuna.create_study(storage=storage, sampler=sampler, study_name="s")
    study.optimize(objective, n_trials=12)
    optuna.delete_study(study_name="s", storage=storage)
    again = optuna.create_study(storage=storage, sampler=sampler, study_name="s")
    again.optimize(objective, n_trials=12)
    assert len(again.trials) == 12


def test_the_sampler_can_be_pickled_and_copied_in_mid_study():
    study = run(7)
    study.sampler = pickle.loads(pickle.dumps(study.sampler))
    study.optimize(objective, n_trials=7)
    study.sampler = copy.deepcopy(study.sampler)
    study.optimize(objective, n_trials=7)
    assert configurations(study) == configurations(run(21))


def test_without_a_given_space_that_of_the_trials_is_used():
    study = optuna.create_study(sampler=SGQuantSampler(known_objective=memory_of, seed=0))
    study.optimize(objective, n_trials=14)
    assert claims(study)[0] is None
    assert all(c is not None for c in claims(study)[1:])


def test_a_claim_of_another_version_is_ignored():
    assert Claim.of({CLAIM_KEY: "{}"}) is None
    assert Claim.of({CLAIM_KEY: "no JSON"}) is None


def test_a_claim_survives_its_text():
    claim = claims(run(1))[0]
    assert Claim.of({CLAIM_KEY: claim.to_json()}) == claim
    assert len(claim.to_json()) < 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_measure": 0}, "n_measure: expected at least 1, got 0"),
        ({"n_sample": 0}, "n_sample: expected at least 1, got 0"),
        ({"acquisition": "best"}, "acquisition: expected one of 'default', 'paper', got 'best'"),
        ({"search_space": {}}, "search_space: expected at least one parameter"),
        ({"known_objective_index": -1}, "known_objective_index: expected at least 0"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        SGQuantSampler(**options)


def test_an_error_of_the_known_objective_is_not_hidden():
    def broken(params):
        raise KeyError("conv9")

    study = optuna.create_study(sampler=SGQuantSampler(SPACE, known_objective=broken, seed=0))
    with pytest.raises(KeyError, match="conv9"):
        study.ask(SPACE)


def test_a_known_objective_that_the_study_lacks_is_refused():
    study = optuna.create_study(
        sampler=SGQuantSampler(SPACE, known_objective=memory_of, known_objective_index=1)
    )
    with pytest.raises(ValueError, match="known_objective_index: expected less than the 1"):
        study.ask(SPACE)
