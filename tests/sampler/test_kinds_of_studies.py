"""Every kind of study: one or more objectives, either direction, constraints or none."""

import itertools

import numpy as np
import optuna
import pytest
from optuna._hypervolume import compute_hypervolume
from optuna.distributions import IntDistribution
from sampler_workers import SPACE, WIDTHS, drop_of, memory_of, new_sampler, objective

from sgquant_optuna.sampler import SGQuantSampler

LEAST_FEASIBLE = min(
    sum(widths)
    for widths in itertools.product(WIDTHS, repeat=len(SPACE))
    if drop_of(dict(zip(SPACE, widths, strict=True))) <= 1.0
)


def suggest(trial):
    return {name: trial.suggest_categorical(name, WIDTHS) for name in SPACE}


def sampler(**options):
    return SGQuantSampler(SPACE, n_sample=500, seed=0, **options)


def least_feasible(study):
    return min(
        memory_of(t.params) for t in study.trials if all(v <= 0 for v in t.constraints.values())
    )


def test_the_optimum_of_a_constrained_study_is_found_in_forty_trials():
    study = optuna.create_study(sampler=new_sampler())
    study.optimize(objective, n_trials=40)
    assert least_feasible(study) == LEAST_FEASIBLE


def test_it_is_found_with_ordinal_integers_too():
    space = {name: IntDistribution(0, 4) for name in SPACE}

    def widths(params):
        return {name: WIDTHS[position] for name, position in params.items()}

    def ordinal(trial):
        params = widths({name: trial.suggest_int(name, 0, 4) for name in SPACE})
        trial.set_constraint("drop", drop_of(params) - 1.0)
        trial.set_user_attr("memory", memory_of(params))
        return memory_of(params)

    study = optuna.create_study(
        sampler=SGQuantSampler(
            space, known_objective=lambda p: memory_of(widths(p)), n_sample=500, seed=0
        )
    )
    study.optimize(ordinal, n_trials=40)
    assert study.best_value == LEAST_FEASIBLE


def test_noise_does_not_keep_it_from_the_truly_feasible():
    rng = np.random.default_rng(0)

    def noisy(trial):
        params = suggest(trial)
        violation = drop_of(params) - 1.0 + 0.1 * rng.standard_normal()
        trial.set_constraint("drop", violation)
        return memory_of(params)

    study = optuna.create_study(sampler=new_sampler())
    study.optimize(noisy, n_trials=60)
    truly = [memory_of(t.params) for t in study.trials if drop_of(t.params) <= 1.0]
    assert min(truly) <= 1.15 * LEAST_FEASIBLE


def test_a_learned_objective_with_a_constraint():
    study = optuna.create_study(sampler=sampler())

    def plain(trial):
        params = suggest(trial)
        trial.set_constraint("drop", drop_of(params) - 1.0)
        return memory_of(params)

    study.optimize(plain, n_trials=60)
    assert study.best_value <= 1.1 * LEAST_FEASIBLE


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_one_learned_objective_in_either_direction(direction, sign):
    study = optuna.create_study(direction=direction, sampler=sampler())
    study.optimize(lambda t: sign * (drop_of(suggest(t)) + memory_of(t.params)), n_trials=50)
    best = min(
        drop_of(p) + memory_of(p)
        for w in itertools.product(WIDTHS, repeat=len(SPACE))
        for p in [dict(zip(SPACE, w, strict=True))]
    )
    assert sign * study.best_value <= 1.02 * best


def test_several_constraints_hold_together():
    study = optuna.create_study(sampler=new_sampler())

    def bounded(trial):
        params = suggest(trial)
        trial.set_constraint("drop", drop_of(params) - 1.0)
        trial.set_constraint("first site", 8.0 - params["site0"])
        return memory_of(params)

    study.optimize(bounded, n_trials=50)
    best = min(
        sum(w)
        for w in itertools.product(WIDTHS, repeat=len(SPACE))
        if w[0] >= 8 and drop_of(dict(zip(SPACE, w, strict=True))) <= 1.0
    )
    assert study.best_value <= 1.1 * best


@pytest.mark.parametrize("known", [0, 1, None])
def test_two_objectives_beat_random_with_or_without_a_known_one(known):
    # The accuracy drop is at the place that is not known; both when nothing is.
    def two(trial):
        params = suggest(trial)
        values = [memory_of(params), drop_of(params)]
        return values[::-1] if known == 1 else values

    options = {}
    if known is not None:
        options = {"known_objective": memory_of, "known_objective_index": known}
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler(**options))
    study.optimize(two, n_trials=60)
    random = optuna.create_study(
        directions=["minimize"] * 2, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    random.optimize(two, n_trials=200)

    def area(study):
        points = np.array([t.values[::-1] if known == 1 else t.values for t in study.trials])
        return compute_hypervolume(points, np.array([96.0, 20.0]))

    assert area(study) > area(random)


def test_three_objectives_of_mixed_directions():
    study = optuna.create_study(
        directions=["minimize", "maximize", "minimize"], sampler=sampler(n_measure=4)
    )
    study.optimize(
        lambda t: (memory_of(suggest(t)), -drop_of(t.params), t.params["site0"]), n_trials=16
    )
    assert len({tuple(t.params.values()) for t in study.trials}) == 16


def test_two_objectives_with_a_constraint_keep_to_the_feasible():
    study = optuna.create_study(
        directions=["minimize"] * 2, sampler=sampler(known_objective=memory_of)
    )

    def bounded(trial):
        params = suggest(trial)
        trial.set_constraint("first site", 8.0 - params["site0"])
        return memory_of(params), drop_of(params)

    study.optimize(bounded, n_trials=40)
    late = [t.params["site0"] >= 8 for t in study.trials[20:]]
    assert np.mean(late) > 0.8


def test_a_known_objective_alone_is_minimised_at_once():
    study = optuna.create_study(sampler=new_sampler(n_measure=4))
    study.optimize(lambda t: memory_of(suggest(t)), n_trials=6)
    assert study.best_value == len(SPACE)


def test_the_paper_mode_ranks_feasible_candidates_by_memory():
    study = optuna.create_study(sampler=new_sampler(acquisition="paper"))
    study.optimize(objective, n_trials=40)
    later = study.trials[20:]
    predicted = [t.user_attrs["predicted"] for t in later]
    assert all(set(p) == {"constraint 0"} for p in predicted)
    assert np.mean([p["constraint 0"] <= 0 for p in predicted]) > 0.8
