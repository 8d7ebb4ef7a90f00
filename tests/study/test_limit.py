import pytest

from sgquant_optuna.study.limit import Limit
from sgquant_optuna.study.trial_result import TrialScore


def score(memory, drop):
    return TrialScore(
        memory_bytes=memory,
        saving=4000.0 / memory,
        accuracy_drop=9.9,
        flips=drop,
        trainings=1,
        evidence=None,
        estimated_drop=drop,
        drop_bound=drop,
    )


DROP, BUDGET = Limit(max_drop=0.5), Limit(budget_bytes=1000.0)


@pytest.mark.parametrize(
    ("limit", "memory", "drop", "violation", "described"),
    [
        (DROP, 100, 0.5, 0.0, "0.00 points above the limit"),
        (DROP, 100, 2.0, 1.5, "1.50 points above the limit"),
        (BUDGET, 1000, 9.0, 0.0, "0.000 MB above the budget"),
        (BUDGET, 5000, 0.0, 4.0, "0.004 MB above the budget"),
    ],
)
def test_a_trial_is_feasible_up_to_the_limit(limit, memory, drop, violation, described):
    trial = score(memory, drop)
    assert limit.violation(trial) == violation
    assert limit.is_feasible(trial) is (violation <= 0)
    assert limit.describe_violation(trial) == described


def test_the_smallest_is_best_within_a_drop_and_the_most_accurate_within_a_budget():
    small, large, too_large = score(500, 0.4), score(995, 0.1), score(1001, 0.0)
    assert DROP.badness(small) < DROP.badness(large)
    assert BUDGET.badness(large) < BUDGET.badness(small) < BUDGET.badness(too_large)
    assert DROP.describe_best(small) == "saving 8.0x"
    assert BUDGET.describe_best(large) == "drop 0.10 points"


def test_what_leaves_a_budget_unused_must_be_better_by_more_than_noise():
    used = score(990, 0.7)
    assert BUDGET.badness(used) < BUDGET.badness(score(989, 0.65))
    assert BUDGET.badness(score(989, 0.55)) < BUDGET.badness(used)


def test_the_limit_that_is_given_is_named():
    assert DROP.to_dict() == {"max_drop": 0.5}
    assert BUDGET.to_dict() == {"budget_bytes": 1000.0}
