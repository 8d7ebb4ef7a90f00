"""A constraint that is computed: what breaks it is never proposed, and a budget is used up."""

import itertools

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution

from sgquant_optuna.sampler import SGQuantSampler
from sgquant_optuna.sampler.known_constraint import KnownConstraint
from sgquant_optuna.sampler.known_objective import KnownFunction
from sgquant_optuna.sampler.space import FiniteSpace
from tests.sampler.toy_study import SPACE, WIDTHS, drop_of, grid, memory_of


def below(budget, parameters, **options):
    """The sum of the widths of some parameters against a budget, in the unit of the sum."""
    space = grid(parameters)
    function = KnownFunction(lambda p: memory_of(p) - budget, space, defaults={})
    return space, KnownConstraint(function, space, **options)


def widths(space, rows):
    return [list(space.params_of(tuple(row)).values()) for row in rows.tolist()]


def test_zero_and_below_holds():
    _, constraint = below(10, 2)
    # 8 + 2 is all of the budget, 8 + 4 is 2 above it, 1 + 1 is 8 below it.
    rows = np.array([[3, 1], [3, 2], [0, 0]])
    assert constraint.values(rows).tolist() == [0, 2, -8]
    assert constraint.holds(rows).tolist() == [True, False, True]
    assert [constraint.holds_for(tuple(row)) for row in rows.tolist()] == [True, False, True]


def test_what_breaks_it_is_brought_within_and_what_holds_stays():
    space, constraint = below(12, 10)  # of 5**10, only 10 * 1 and those with one or two 2s hold
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.zeros((1, 10), dtype=np.int64), space.random(rng, 200)])
    within = constraint.within(rows, rng, {})
    assert constraint.holds(within).all()
    assert within[0].tolist() == [0] * 10
    assert len(space.distinct(within)) > 5


def test_a_budget_is_filled_up_as_far_as_it_goes():
    space, constraint = below(41, 4, slack=1)
    rng = np.random.default_rng(0)
    rows = constraint.filled(np.zeros((100, 4), dtype=np.int64), rng, {})
    assert {sum(row) for row in widths(space, rows)} <= {40, 41}
    assert constraint.filled(rows, rng, {}).tolist() == rows.tolist()


def test_without_slack_nothing_is_filled_up():
    _, constraint = below(41, 4)
    rows = np.zeros((3, 4), dtype=np.int64)
    rng = np.random.default_rng(0)
    assert constraint.filled(rows, rng, {}).tolist() == rows.tolist()


def test_enqueued_parameters_stay_as_they_are():
    _, constraint = below(41, 4, slack=1)
    rng = np.random.default_rng(0)
    rows = np.full((50, 4), 4)
    for made in (constraint.within, constraint.filled):
        rows = made(rows, rng, {"p01": 4})
        assert set(rows[:, 1]) == {4}
    assert constraint.holds(rows).all()
    # Nothing holds with 16 bits twice and 5 at most: the least is what is left.
    _, tight = below(20, 4)
    assert tight.within(rows, rng, {"p01": 4, "p02": 4})[0].tolist() == [0, 4, 4, 0]


def test_what_holds_of_a_small_grid_is_listed_from_the_limit_on():
    space, constraint = below(9, 2, slack=1)
    rows = constraint.listed(np.random.default_rng(0), 100)
    assert sorted(widths(space, rows[:3])) == [[1, 8], [4, 4], [8, 1]]
    assert len(rows) == 3 * 3 + 2  # all of 1, 2 and 4 bits, too
    assert len(constraint.listed(np.random.default_rng(0), 4)) == 4
    assert constraint.uses_it_up(np.array([[0, 0], [1, 2], [0, 2]])).tolist() == [
        False,  # 2 of 6, the most that one of these uses
        True,
        True,
    ]


def test_a_configuration_is_full_where_no_parameter_can_be_raised():
    _, constraint = below(9, 2)
    # 4 + 4 with steps of 4 more, 4 + 2 with one of 2, 8 + 1 with one of 1, and 16 + 16 with none.
    rows = np.array([[2, 2], [2, 1], [3, 0], [4, 4]])
    assert constraint.is_full(rows).tolist() == [True, False, True, True]


def test_a_constraint_that_is_no_sum_and_has_no_order_is_kept():
    space = FiniteSpace(
        {"a": IntDistribution(1, 9), "kind": CategoricalDistribution(["big", "small"])}
    )

    def product(params):
        return params["a"] * (7 if params["kind"] == "big" else 2) - 8

    constraint = KnownConstraint(KnownFunction(product, space, defaults={}), space, slack=0)
    rng = np.random.default_rng(0)
    rows = constraint.within(space.all(), rng, {})
    assert constraint.holds(rows).all()
    filled = constraint.filled(rows, rng, {})
    assert (constraint.values(filled) >= constraint.values(rows)).all()
    assert constraint.values(filled).max() == 0  # 4 of the small kind
    assert not constraint.is_full(filled).any()  # not known


def test_a_constraint_that_nothing_satisfies_is_refused():
    with pytest.raises(ValueError, match="expected a configuration with 0 or less, .* found is 1"):
        below(3, 4)


def run(budget, objective, n_trials=25, acquisition="default", enqueued=(), **options):
    sampler = SGQuantSampler(
        SPACE,
        known_constraint=lambda params: memory_of(params) / budget - 1,
        acquisition=acquisition,
        n_sample=500,
        seed=0,
        **options,
    )
    study = optuna.create_study(sampler=sampler)
    for params in enqueued:
        study.enqueue_trial(params)
    study.optimize(objective, n_trials=n_trials)
    return study


def drop(trial):
    return drop_of({name: trial.suggest_categorical(name, WIDTHS) for name in SPACE})


def test_no_trial_breaks_it(acquisition):
    study = run(9, drop, n_trials=80, acquisition=acquisition)
    # Of 15,625, 48 hold: 1, 6, 15 and 20 with none to three of 2 bits, and 6 with one of 4. When
    # all are measured, they are repeated.
    assert max(memory_of(trial.params) for trial in study.trials) <= 9
    every = [w for w in itertools.product(WIDTHS, repeat=len(SPACE)) if sum(w) <= 9]
    measured = {tuple(trial.params[name] for name in SPACE) for trial in study.trials}
    assert measured == set(every)


@pytest.mark.parametrize("budget", [20, 48])
def test_the_best_below_a_budget_is_found_by_using_it_up(budget):
    study = run(budget, drop, known_constraint_slack=0.01)
    best = min(
        drop_of(dict(zip(SPACE, w, strict=True)))
        for w in itertools.product(WIDTHS, repeat=len(SPACE))
        if sum(w) <= budget
    )
    assert study.best_value <= best + 0.3
    used = [memory_of(trial.params) for trial in study.trials]
    assert max(used) == budget and min(used[:10]) >= budget - 1  # from the first round on


def test_what_breaks_it_is_measured_if_enqueued_and_not_learned_from():
    def penalised(trial):
        value = drop(trial)
        excess = memory_of(trial.params) / 20 - 1
        trial.storage.set_trial_system_attr(trial._trial_id, "constraints", [excess])
        return value if excess <= 0 else 1000.0

    large = [dict.fromkeys(SPACE, width) for width in (16, 8)]
    options = {"known_constraint_slack": 0.01, "known_constraint_name": "0"}
    study = run(20, penalised, enqueued=large, **options)
    assert [memory_of(trial.params) for trial in study.trials[:2]] == [96, 48]
    assert max(memory_of(trial.params) for trial in study.trials[2:]) <= 20
    predicted = study.trials[-1].user_attrs["predicted"]
    assert set(predicted) == {"objective 0", "objective 0 deviation"}
    assert abs(predicted["objective 0"] - study.trials[-1].value) < 1.0


def test_enqueued_parameters_are_completed_within_it():
    study = run(20, drop, n_trials=1, enqueued=[{"site0": 8}], known_constraint_slack=0.01)
    assert study.trials[0].params["site0"] == 8
    assert 18 <= memory_of(study.trials[0].params) <= 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"known_constraint": memory_of}, "known_constraint: expected search_space with it"),
        ({"known_constraint_slack": -1.0}, "known_constraint_slack: expected at least 0, got -1"),
    ],
)
def test_bad_options_say_what_was_expected(options, message):
    with pytest.raises(ValueError, match=message):
        SGQuantSampler(**options)
