import pytest

from sgquant_optuna.study.limit import Limit, plain_drop
from sgquant_optuna.study.metric_words import MetricWords
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


ACCURACY, MAE = MetricWords(), MetricWords("MAE", "eV", higher_is_better=False)


@pytest.mark.parametrize(
    ("given", "metric", "full", "drop", "described"),
    [
        # 2 % of 81.2 are not 2 points.
        ("2%", ACCURACY, 81.2, 1.624, "2 % of 81.20 % = 1.62 points"),
        (2, ACCURACY, 81.2, 2.0, "2 points"),
        (" 2.50 % ", MAE, 0.004, 0.0001, "2.5 % of 0.004 eV = 0.0001 eV"),
        ("0.0002", MAE, 0.004, 0.0002, "0.0002 eV"),
        # A value below 0, as of a likelihood, may drop further.
        ("10%", MetricWords("likelihood", ""), -3.0, 0.3, "10 % of -3 = 0.3"),
    ],
)
def test_a_limit_is_a_number_or_a_share_of_full_precision(given, metric, full, drop, described):
    limit = Limit.of_drop(given, metric, full)
    assert limit.max_drop == pytest.approx(drop)
    assert limit.describe_drop() == described
    assert limit.is_feasible(score(1, drop * 0.999))
    assert not limit.is_feasible(score(1, drop * 1.001))


@pytest.mark.parametrize("given", ["two", "%", "x%", "-1%", -0.1, "nan", "inf%", None, [1]])
def test_a_limit_of_another_form_is_refused(given):
    with pytest.raises(ValueError, match="a share of the full-precision value such as '2%', got"):
        plain_drop(given)


def test_a_budget_wins_over_a_drop_and_one_of_both_is_needed():
    what = {"metric": MetricWords(), "full_precision": 80.0}
    assert Limit.asked(max_drop="1%", budget_bytes=None, **what).largest_drop == 0.8
    assert Limit.asked(max_drop=0.5, budget_bytes=9.0, **what).budget_bytes == 9.0
    with pytest.raises(ValueError, match="exactly one of budget_bytes and max_drop, got neither"):
        Limit.asked(max_drop=None, budget_bytes=None, **what)


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="full-precision MAE is 0, of which every share is 0"):
        Limit.of_drop("2%", MAE, 0.0)


def test_noise_and_penalty_are_of_the_metric():
    def budget(metric, full):
        return Limit(budget_bytes=1000.0, metric=metric, full_precision=full)

    # 0.1 points of accuracy; a thousandth of an error.
    assert budget(ACCURACY, 81.2).noise == pytest.approx(0.1)
    assert budget(MAE, 0.004).noise == pytest.approx(4e-6)
    used, unused = score(995, 0.00107), score(500, 0.00105)
    assert budget(MAE, 0.004).badness(unused) < budget(MAE, 0.004).badness(used)
    assert budget(MAE, 40.0).badness(used) < budget(MAE, 40.0).badness(unused)
    # A half above the budget.
    assert budget(ACCURACY, 81.2).penalty(score(1500, 3.0)) == 150
    # Of no use is the trial itself, which has lost 9.9.
    assert budget(MAE, 0.004).penalty(score(1500, 3.0)) == pytest.approx(1.5 * 9.9)
    assert budget(MAE, 4_000.0).penalty(score(1500, 3.0)) == 600_000


def test_what_is_above_is_told_in_the_unit_of_the_metric():
    limit = Limit.of_drop("50%", MAE, 0.004)
    assert limit.describe_violation(score(1, 0.0123)) == "0.0103 eV above the limit"
    assert limit.to_dict() == {"max_drop": 0.002, "max_drop_share": 50.0}
    within = Limit(budget_bytes=1000.0, metric=MAE, full_precision=0.004)
    assert within.describe_best(score(999, 0.00031)) == "drop 0.00031 eV"
