"""The end of a study whose models expect no more gain."""

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from sgquant_optuna.sampler import StopWhenSettled
from sgquant_optuna.sampler.settled import has_settled
from tests.sampler.toy_study import new_sampler, objective


def trials_of(gains, **options):
    study = optuna.create_study()
    for gain in gains:
        predicted = {"feasible": 0.5} if gain is None else {"feasible": 0.5, "gain": gain}
        study.add_trial(
            create_trial(**{"value": 1.0, **options}, user_attrs={"predicted": predicted})
        )
    return study.trials


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([0.2, 0.009, 0.0, 0.005], True),
        ([0.0, 0.0, 0.01], False),
        ([0.2, 0.0, 0.0], False),  # the ladder and two more
        ([None, 0.0, None, 0.0, 0.0], True),  # not all were chosen by the models
        ([None, None, None], False),
        ([], False),
    ],
)
def test_three_trials_that_promise_less_than_one_percent_settle_a_study(gains, expected):
    assert has_settled(trials_of(gains), 3) == expected


def test_failed_trials_tell_nothing():
    assert not has_settled(trials_of([0.0] * 3, state=TrialState.FAIL, value=None), 3)


def test_the_gain_of_a_trial_is_the_expected_saving_as_a_share_of_the_best(study):
    told = [trial.user_attrs["predicted"]["gain"] for trial in study.trials[2:]]
    assert all(0 <= gain < 1 for gain in told)
    assert max(told[:10]) > 0.05
    assert max(told[-5:]) < 0.05


def test_a_study_ends_by_itself_and_goes_on_when_it_is_asked_to():
    study = optuna.create_study(sampler=new_sampler())
    study.optimize(objective, n_trials=60, callbacks=[StopWhenSettled(3)])
    ended = len(study.trials)
    assert 10 < ended < 60
    assert has_settled(study.trials, 3) and not has_settled(study.trials[:-1], 3)
    study.optimize(objective, n_trials=2)
    assert len(study.trials) == ended + 2


def test_no_patience_is_refused():
    with pytest.raises(ValueError, match="patience: expected at least 1, got 0"):
        StopWhenSettled(patience=0)
