import math

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")


STATES = (TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL)


def test_trials_are_read_as_optuna_reads_them(storage):
    study = optuna.create_study(storage=storage, directions=["minimize", "maximize"])
    study.enqueue_trial({"x": 3, "unknown": 1})
    study.optimize(
        lambda t: (t.suggest_int("x", 0, 9), t.suggest_float("z", 0.1, 1, log=True)), n_trials=2
    )
    single = optuna.create_study(storage=storage)
    for number in range(4):
        trial = single.ask()
        trial.suggest_categorical("b", (None, "a", 2.5))
        trial.suggest_float("a", 0, 1)
        for step, value in enumerate((0.5, math.inf, -math.inf)):
            trial.report(value, 3 - step)
        trial.set_user_attr("deep", {"list": [1, None, "ünï"], "number": number})
        single._storage.set_trial_system_attr(trial._trial_id, "constraints", [0.5])
        if number < 3:
            single.tell(trial, (2.0, math.inf, None)[number], state=list(STATES)[number])
    for made in (study, single):
        number = made._study_id
        for states in (None, (TrialState.COMPLETE, TrialState.RUNNING), ()):
            expected = RDBStorage._get_trials(storage, number, states, set(), -1)
            assert storage._get_trials(number, states, set(), -1) == expected
        ids = [
            trial._trial_id for trial in RDBStorage._get_trials(storage, number, None, set(), -1)
        ]
        expected = RDBStorage._get_trials(storage, number, None, {ids[0]}, ids[1])
        assert storage._get_trials(number, None, {ids[0]}, ids[1]) == expected
        many = {ids[0], *range(10**6, 10**6 + 3000)} | set(range(-3000, 0))
        assert storage._get_trials(number, None, many, ids[1]) == expected
        for trial_id in ids:
            assert storage.get_trial(trial_id) == RDBStorage.get_trial(storage, trial_id)
            assert list(storage.get_trial(trial_id).params) == list(
                RDBStorage.get_trial(storage, trial_id).params
            )
    with pytest.raises(KeyError):
        storage.get_trial(10**6)
    with pytest.raises(KeyError):
        storage.get_all_trials(10**6)


def test_what_is_equal_in_all_trials_is_held_once(storage):
    study = optuna.create_study(storage=storage)
    for value in (1, 2):
        trial = study.ask()
        trial.suggest_categorical("conv1/embedding", (1, 2))
        trial.set_user_attr("bit_widths", {"conv1/embedding": value})
        study.tell(trial, value)
    first, second = storage.get_all_trials(study._study_id)
    assert first.distributions["conv1/embedding"] is second.distributions["conv1/embedding"]
    for of in ("params", "distributions", "user_attrs"):
        (one, *_), (other, *_) = getattr(first, of), getattr(second, of)
        assert one is other
    widths = [list(trial.user_attrs["bit_widths"])[0] for trial in (first, second)]
    assert widths[0] is widths[1]
