import threading

import optuna
import pytest
import sqlalchemy as sa

from sgquant_optuna.storage import write_together

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")


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
