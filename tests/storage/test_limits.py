"""Limits of time on the connections to servers, and their time zone."""

import signal
import subprocess
import sys
import threading
import time

import optuna
import pytest
import sqlalchemy as sa

from sgquant_optuna.storage import limits, open_storage
from sgquant_optuna.storage.databases import read_from
from sgquant_optuna.storage.limits import IDLE_TRANSACTION, LOCK, STATEMENT, limit_waits
from sgquant_optuna.storage.urls import resolve_url
from sgquant_optuna.study.rows import silent_seconds
from tests.databases import BACKENDS, SERVERS, fresh_database

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")
SERVED = [name for name in SERVERS if name in BACKENDS]
SETTINGS = {
    "postgresql": (
        "SELECT current_setting('TimeZone'), "
        "current_setting('idle_in_transaction_session_timeout'), "
        "current_setting('lock_timeout'), current_setting('statement_timeout')",
        ("UTC", f"{IDLE_TRANSACTION}s", f"{LOCK}s", f"{STATEMENT}s"),
    ),
    "mysql": (
        "SELECT @@time_zone, @@idle_transaction_timeout, @@innodb_lock_wait_timeout, "
        "@@max_statement_time",
        ("+00:00", IDLE_TRANSACTION, LOCK, STATEMENT),
    ),
}
OF_USER = {
    "postgresql": "?options=-c%20lock_timeout%3D7s%20-c%20statement_timeout%3D9s",
    "mysql": "?init_command=SET%20innodb_lock_wait_timeout%3D7,max_statement_time%3D9",
}
ZONES = {
    "postgresql": ["", "?options=-c%20TimeZone%3DAsia/Tokyo", "?options=-c%20TimeZone%3DUTC-7"],
    "mysql": [
        "",
        "?init_command=SET%20time_zone='%2B09:00'",
        "?init_command=SET%20time_zone='-7:00'",
    ],
}
SLOW = {"postgresql": "SELECT pg_sleep(5)", "mysql": "SELECT SLEEP(5) FROM trials"}
PAUSED = """
import os, signal, sys
import sqlalchemy as sa
from sgquant_optuna.storage import limits
limits.IDLE_TRANSACTION = 1
engine = sa.create_engine(sys.argv[1])
limits.limit_waits(engine)
with engine.connect() as connection:
    connection.execute(sa.text("UPDATE locked SET value = 1"))
    print("locked", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    try:
        connection.execute(sa.text("UPDATE locked SET value = 1"))
        connection.commit()
    except sa.exc.DBAPIError as error:
        print(error.connection_invalidated)
"""


@pytest.fixture(params=SERVED)
def backend(request):
    return request.param


@pytest.fixture
def url(backend, tmp_path):
    with fresh_database(backend, tmp_path) as url:
        yield url


def test_a_session_has_the_limits_and_is_in_utc(backend, url, monkeypatch):
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")
    query, expected = SETTINGS[backend]
    with open_storage(url).engine.connect() as connection:
        connection.rollback()
        assert tuple(connection.execute(sa.text(query)).one()) == expected


def test_limits_in_the_url_win_over_those_of_the_session(backend, url):
    storage = open_storage(url + OF_USER[backend])
    query, expected = SETTINGS[backend]
    with storage.engine.connect() as connection:
        found = connection.execute(sa.text(query)).one()
    assert found[:2] == expected[:2]
    assert [str(value).rstrip("s") for value in found[2:]] in (["7", "9"], ["7", "9.0"])


def test_a_write_that_waits_too_long_for_a_lock_is_repeated_until_it_is_free(
    url, monkeypatch, caplog
):
    monkeypatch.setattr(limits, "LOCK", 1)
    storage = open_storage(url)
    trial = optuna.create_study(storage=storage).ask()
    storage.set_trial_user_attr(trial._trial_id, "x", 0)
    blocker = sa.create_engine(resolve_url(url), poolclass=sa.pool.NullPool)
    with blocker.connect() as holder:
        holder.execute(sa.text("UPDATE trial_user_attributes SET value_json = '7'"))
        threading.Timer(2.5, holder.rollback).start()
        storage.set_trial_user_attr(trial._trial_id, "x", 1)
    assert storage.get_trial(trial._trial_id).user_attrs == {"x": 1}
    assert "lock" in caplog.text.lower()
    assert "trying again" in caplog.text


def test_a_statement_that_lasts_too_long_ends_and_is_repeated(backend, url, monkeypatch):
    monkeypatch.setattr(limits, "STATEMENT", 1)
    storage = open_storage(url, retry_seconds=20)
    optuna.create_study(storage=storage).ask()
    statements = iter([SLOW[backend], "SELECT 1"])

    def query(connection):
        return connection.execute(sa.text(next(statements))).scalar()

    started = time.monotonic()
    assert read_from(storage, query) == 1
    assert time.monotonic() - started < 4


@pytest.mark.skipif("postgresql" not in SERVED, reason="needs TEST_POSTGRESQL_URL")
def test_a_server_that_never_answers_is_given_up_by_the_client(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "SILENCE", 1.0)
    with fresh_database("postgresql", tmp_path) as url:
        storage = open_storage(f"{url}?options=-c%20statement_timeout%3D0", retry_seconds=20)
        statements = iter(["SELECT pg_sleep(15)", "SELECT 1"])

        def query(connection):
            return connection.execute(sa.text(next(statements))).scalar()

        started = time.monotonic()
        assert read_from(storage, query) == 1
        assert time.monotonic() - started < 6
        storage.engine.dispose()


def test_a_worker_that_is_paused_in_a_transaction_stops_no_other(url):
    engine = sa.create_engine(resolve_url(url), poolclass=sa.pool.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE locked (value INTEGER)"))
        connection.execute(sa.text("INSERT INTO locked VALUES (0)"))
    text = resolve_url(url).render_as_string(hide_password=False)
    command = [sys.executable, "-c", PAUSED, text]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as paused:
        assert paused.stdout.readline() == "locked\n"
        started = time.monotonic()
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE locked SET value = 2"))
        assert time.monotonic() - started < 5
        paused.send_signal(signal.SIGCONT)
        assert paused.stdout.read() == "True\n"  # it finds its connection lost
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT value FROM locked")).scalar() == 2


def test_no_trial_is_stale_because_workers_are_in_other_time_zones(backend, url):
    study = optuna.create_study(storage=open_storage(url))
    trial = study.ask()
    for zone in ZONES[backend]:
        storage = open_storage(url + zone, heartbeat_interval=1, grace_period=60)
        storage.record_heartbeat(trial._trial_id)
        for other in ZONES[backend]:
            assert open_storage(url + other)._get_stale_trial_ids(study._study_id) == []
        assert silent_seconds(study)[trial._trial_id] < 60


@pytest.mark.skipif("postgresql" not in SERVED, reason="needs TEST_POSTGRESQL_URL")
def test_no_trial_is_stale_because_a_time_zone_changed(tmp_path):
    with fresh_database("postgresql", tmp_path) as url:
        storage = open_storage(url)
        study = optuna.create_study(storage=storage)
        trial = study.ask()
        storage.record_heartbeat(trial._trial_id)
        engine = sa.create_engine(resolve_url(url), isolation_level="AUTOCOMMIT")
        for zone in ("Asia/Tokyo", "America/New_York"):
            with engine.connect() as connection:
                name = resolve_url(url).database
                connection.execute(sa.text(f"ALTER DATABASE {name} SET timezone TO '{zone}'"))
            storage.engine.dispose()
            assert storage._get_stale_trial_ids(study._study_id) == []
        engine.dispose()


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ("postgresql://host/db", "connect_timeout", 10),
        ("postgresql://host/db?connect_timeout=3", "connect_timeout", "3"),
        ("mysql://host/db", "read_timeout", 60),
        ("mysql://host/db?read_timeout=7", "read_timeout", 7),
        ("postgresql://host/db", "tcp_user_timeout", 30_000),
    ],
)
def test_limits_in_the_url_win(given, name, expected):
    engine = sa.create_engine(resolve_url(given))
    limit_waits(engine)
    seen = {}

    @sa.event.listens_for(engine, "do_connect")
    def keep(dialect, record, arguments, options):
        seen.update(options)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        engine.connect()
    assert seen[name] == expected
