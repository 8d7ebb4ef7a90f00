"""One line for a wait that lasts, another when it is over."""

import multiprocessing
import time

import pytest
import sqlalchemy as sa

from sgquant_optuna.storage import waits
from sgquant_optuna.storage.waits import tell_long_statements, told_if_long


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(waits, "LONG", 0.2)
    monkeypatch.setattr(waits, "_LOOK", 0.05)
    monkeypatch.setattr(waits, "_watch", waits._Watch())


def wait(seconds):
    with told_if_long("proxy: GetTrials"):
        time.sleep(seconds)


def test_a_long_wait_is_told_once_and_its_end(caplog):
    wait(0.6)
    assert [record.message for record in caplog.records] == [
        "proxy: GetTrials: no answer for 0 s",
        "proxy: GetTrials: over after 1 s",
    ]


def test_short_waits_are_not_told(caplog):
    for _ in range(10):
        wait(0.04)
    assert not caplog.records


def test_a_statement_that_lasts_is_told_with_its_first_words(caplog):
    engine = sa.create_engine("sqlite://")
    tell_long_statements(engine)

    @sa.event.listens_for(engine, "connect")
    def add(connection, record):
        connection.create_function("sleep", 1, time.sleep)

    with engine.connect() as connection:
        connection.exec_driver_sql(
            "SELECT\n sleep(0.4), 'many words that nobody ever reads to the end'"
        )
        with pytest.raises(sa.exc.OperationalError):
            connection.exec_driver_sql("SELECT nothing")
        time.sleep(0.4)
    assert [record.message.split(":")[1] for record in caplog.records] == [
        " SELECT sleep(0.4), 'many words that nobody ever reads to the...",
    ] * 2


def test_a_forked_process_watches_its_own_waits():
    wait(0.1)
    process = multiprocessing.get_context("fork").Process(target=_fork_waits)
    process.start()
    process.join(10)
    assert process.exitcode == 0


def _fork_waits():
    assert not waits._watch._calls
    waits.LONG = 0.1
    told = []
    waits._logger.warning = lambda *words: told.append(words)
    wait(1.5)
    assert len(told) == 2
