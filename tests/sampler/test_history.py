"""The history of a study: foreign, failed and pruned trials, and studies made anew."""

import optuna
from optuna.distributions import IntDistribution

from tests.sampler.toy_study import (
    claims,
    configuration,
    configurations,
    new_sampler,
    objective,
    run,
)


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
    assert claims(study)[15].round == 1  # they stand in for the first round
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


def test_a_pruned_trial_counts_as_measured_and_its_constraints_are_learned_from():
    def prunes(trial):
        objective(trial)
        trial.report(1.0, step=1)
        raise optuna.TrialPruned

    study = optuna.create_study(sampler=new_sampler(n_measure=5))
    study.optimize(prunes, n_trials=12)
    assert [c.round for c in claims(study)] == [0] * 5 + [1] * 5 + [2] * 2
    assert {"constraint 0", "feasible"} <= set(study.trials[-1].user_attrs["predicted"])


def test_a_study_that_was_deleted_and_made_again_starts_anew():
    storage, sampler = optuna.storages.InMemoryStorage(), new_sampler()
    study = optuna.create_study(storage=storage, sampler=sampler, study_name="s")
    study.optimize(objective, n_trials=12)
    optuna.delete_study(study_name="s", storage=storage)
    again = optuna.create_study(storage=storage, sampler=sampler, study_name="s")
    again.optimize(objective, n_trials=12)
    assert len(again.trials) == 12
