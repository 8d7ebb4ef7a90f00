import sqlite3
from types import SimpleNamespace

import optuna
import pytest
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState

from sgquant_optuna.storage.retries import (
    Backoff,
    is_server_away,
    message,
    outage,
    retry,
    retry_methods,
    write_state_once,
)


@pytest.fixture
def pauses(monkeypatch):
    """Record the pauses instead of sleeping, on a clock that only they move."""
    found = []
    # Of this module alone: threads of other tests sleep, too.
    clock = SimpleNamespace(sleep=found.append, monotonic=lambda: sum(found))
    monkeypatch.setattr("sgquant_optuna.storage.retries.time", clock)
    monkeypatch.setattr("sgquant_optuna.storage.retries.random.uniform", lambda low, high: high)
    return found


def lost(text="server closed"):
    """An error of a connection that broke."""
    error = sa.exc.OperationalError("COMMIT", None, Exception(text))
    error.connection_invalidated = True
    return error


def failing(*errors):
    left = list(errors)

    def call():
        if left:
            raise left.pop(0)
        return "done"

    return call


def test_pauses_double_up_to_ten_seconds_and_end_at_the_deadline(pauses, caplog):
    backoff = Backoff(30.0)
    while backoff.pause(lost()):
        pass
    assert pauses[:8] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0])
    assert sum(pauses) == pytest.approx(30.0)
    assert caplog.messages == ["database: server closed; trying again for up to 30 s"]


def test_a_call_is_repeated_after_a_temporary_error_alone(pauses):
    assert retry(failing(lost(), lost()), 60.0) == "done"
    assert len(pauses) == 2
    with pytest.raises(ZeroDivisionError):
        retry(failing(ZeroDivisionError()), 60.0)
    with pytest.raises(sa.exc.IntegrityError):
        retry(failing(sa.exc.IntegrityError("INSERT", None, Exception("duplicate"))), 60.0)
    assert len(pauses) == 2


def test_the_last_error_is_raised_at_the_deadline(pauses):
    with pytest.raises(sa.exc.OperationalError, match="server closed"):
        retry(failing(*[lost()] * 1000), 60.0)
    assert sum(pauses) == pytest.approx(60.0)


def test_an_error_that_optuna_wraps_counts_too(pauses):
    wrapped = StorageInternalError("an exception is raised during the commit")
    wrapped.__cause__ = lost()
    assert retry(failing(wrapped), 60.0) == "done"
    assert outage(wrapped) == "server closed" and is_server_away(wrapped)


@pytest.mark.parametrize("text", ["database is locked", "database or disk is full"])
def test_a_locked_file_and_a_full_disk_pass(text, pauses):
    error = sa.exc.OperationalError("COMMIT", None, sqlite3.OperationalError(text))
    assert retry(failing(error), 60.0) == "done"
    assert not is_server_away(error)  # a file does not come back


def test_methods_of_a_class_repeat_themselves_for_the_seconds_of_their_object(pauses):
    class Storage:
        retry_seconds = 1.0
        call = staticmethod(failing(lost()))

        def read(self, key):
            """Read it."""
            return key, self.call()

    retry_methods(Storage, ["read"])
    assert Storage().read("a") == ("a", "done")
    assert Storage.read.__doc__ == "Read it."
    Storage.retry_seconds = 0.0
    Storage.call = staticmethod(failing(lost()))
    with pytest.raises(sa.exc.OperationalError):
        Storage().read("a")


def test_a_result_whose_answer_was_lost_is_found_and_that_of_another_refused(pauses):
    study = optuna.create_study()
    storage = study._storage
    trial = study.ask()._trial_id

    def complete(value, answers):
        def write():
            storage.set_trial_state_values(trial, TrialState.COMPLETE, [value])
            raise answers.pop(0)

        return write_state_once(storage, write, trial, TrialState.COMPLETE, [value], seconds=60)

    assert complete(1.0, [lost()])
    with pytest.raises(UpdateFinishedTrialError):
        complete(1.0, [])  # not in a try of ours
    assert study.trials[0].value == 1.0


def test_a_message_is_the_first_line_and_what_is_no_outage_has_none():
    assert message(lost("gone away\n(Background on this error at: ...)")) == "gone away"
    assert message(ValueError()) == "ValueError"
    assert outage(StorageInternalError("readonly")) == "readonly"
    assert outage(ValueError("a mistake")) is None
