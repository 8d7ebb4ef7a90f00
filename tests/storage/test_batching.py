import math
import threading
import time

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from sgquant_optuna.storage import open_storage, write_together
from tests.databases import BACKENDS, fresh_database

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")


@pytest.fixture(params=BACKENDS)
def storage(request, tmp_path):
    with fresh_database(request.param, tmp_path) as url:
        opened = open_storage(url)
        yield opened
        opened.engine.dispose()


def commits(storage):
    """Count the transactions of a storage that write."""
    found = []

    def note(connection, cursor, statement, *_):
        if statement.lstrip().upper().startswith(("INSERT", "UPDATE")):
            found.append(connection.get_transaction())

    sa.event.listen(storage.engine, "before_cursor_execute", note)
    return lambda: len({id(transaction) for transaction in found}), found


def test_what_is_set_together_is_one_transaction(storage):
    study = optuna.create_study(storage=storage)
    study.optimize(lambda trial: trial.suggest_int("x0", 0, 9), n_trials=1)
    trial = study.ask()
    count, kept = commits(storage)
    with write_together():
        for number in range(5):
            trial.suggest_int(f"x{number}", 0, 9)
        for number in range(5):
            trial.set_user_attr(f"a{number}", number)
        trial.set_user_attr("a0", "later")
        assert not kept
        assert study.trials[1].params == {}
    assert count() == 1
    stored = study.trials[1]
    assert stored.params == trial.params
    assert stored.user_attrs == {"a0": "later", "a1": 1, "a2": 2, "a3": 3, "a4": 4}
    with write_together():
        trial.set_user_attr("a1", "other")
    assert study.trials[1].user_attrs["a1"] == "other"


def test_what_was_set_before_an_error_is_kept(storage):
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    with pytest.raises(ZeroDivisionError), write_together():
        trial.suggest_int("x", 0, 9)
        trial.set_user_attr("a", 1 / 0)
    assert study.trials[0].params == trial.params


def test_a_batch_whose_answer_was_lost_is_written_once(storage):
    study = optuna.create_study(storage=storage)
    trial, lost = study.ask(), []

    def lose(connection):
        if not lost:
            lost.append(True)
            connection.connection.dbapi_connection.commit()
            error = sa.exc.OperationalError("COMMIT", {}, Exception("lost"))
            error.connection_invalidated = True
            raise error

    sa.event.listen(storage.engine, "commit", lose)
    with write_together():
        trial.suggest_int("x", 0, 9)
        trial.set_user_attr("a", 1)
    assert lost
    assert (study.trials[0].params, study.trials[0].user_attrs) == (trial.params, {"a": 1})


def test_another_distribution_of_the_same_name_is_refused(storage):
    study = optuna.create_study(storage=storage)
    study.optimize(lambda trial: trial.suggest_categorical("x", (1, 2)), n_trials=1)
    with pytest.raises(ValueError, match="dynamic value space"), write_together():
        study.ask().suggest_categorical("x", (1, 2, 4))


def test_threads_do_not_wait_for_one_another(storage):
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    with write_together():
        other = threading.Thread(target=lambda: trial.set_user_attr("a", 1))
        other.start()
        other.join()
        assert study.trials[0].user_attrs == {"a": 1}


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


STATES = (TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL)


def test_a_connection_that_broke_while_it_was_idle_is_replaced_unseen(storage):
    if storage.engine.name == "sqlite":
        pytest.skip("a file has no connections that break")
    study = optuna.create_study(storage=storage)
    killed = []

    def kill(connection, record, proxy):
        if not killed:
            killed.append(True)
            record.info["used"] = time.monotonic() - 1
            connection.close()

    # Before the check, as if the server had ended it.
    sa.event.listen(storage.engine, "checkout", kill, insert=True)
    assert study.ask().number == 0
    assert killed
