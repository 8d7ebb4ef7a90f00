"""The sampler in every kind of study: its objectives, directions, constraints and arguments."""

import copy
import itertools
import pickle
import subprocess
import sys

import numpy as np
import optuna
import pytest
from optuna._hypervolume import compute_hypervolume
from optuna.distributions import FloatDistribution, IntDistribution

from sgquant_optuna.sampler import SGQuantSampler
from tests.sampler.toy_study import (
    SPACE,
    WIDTHS,
    claims,
    configurations,
    drop_of,
    memory_of,
    new_sampler,
    objective,
    run,
)

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


def lowered(attrs):
    """Constraints by the mean of all drops: what a trial lost is compared with three quarters."""
    mean = float(np.mean([one["drop"] for one in attrs if "drop" in one]))
    return [[one["drop"] - 0.75 * mean] if "drop" in one else None for one in attrs]


def test_constraints_that_depend_on_all_trials_are_computed_anew():
    def objective(trial):
        drop = drop_of(suggest(trial))
        trial.set_user_attr("drop", drop)
        trial.set_constraint("0", 1.0)  # what it knew then: not feasible
        return memory_of(trial.params)

    study = optuna.create_study(sampler=new_sampler(joint_constraints=lowered))
    study.optimize(objective, n_trials=30)
    attrs = [trial.user_attrs for trial in study.trials]
    feasible = [anew is not None and anew[0] <= 0 for anew in lowered(attrs)]
    predicted = [
        trial.user_attrs.get("predicted", {}).get("feasible", np.nan) for trial in study.trials
    ]
    assert np.nanmax(predicted) > 0.5 and sum(feasible) > 5
    # A study that believes what was recorded never expects anything feasible.
    believing = optuna.create_study(sampler=new_sampler())
    believing.optimize(objective, n_trials=30)
    assert max(expected_feasibility(believing)) < 0.5


def expected_feasibility(study):
    return [one.user_attrs.get("predicted", {}).get("feasible", 0.0) for one in study.trials]


def test_a_trial_whose_constraints_are_not_known_anew_keeps_its_own():
    study = optuna.create_study(
        sampler=new_sampler(joint_constraints=lambda attrs: [None] * len(attrs))
    )
    plain = optuna.create_study(sampler=new_sampler())
    for one in (study, plain):
        one.optimize(objective, n_trials=20)
    assert configurations(study) == configurations(plain)


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


def test_importing_the_sampler_imports_neither_torch_nor_scikit_learn():
    program = (
        "import sys, sgquant_optuna.sampler; "
        "print([m for m in ('torch', 'torch_geometric', 'sklearn') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
