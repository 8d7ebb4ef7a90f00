"""Limits of time on the connections to servers, and their time zone."""

import signal
import subprocess
import sys
import time

import optuna
import pytest
import sqlalchemy as sa

from sgquant_optuna.storage import open_storage
from sgquant_optuna.storage.limits import IDLE_TRANSACTION, limit_waits
from sgquant_optuna.storage.urls import resolve_url
from tests.databases import BACKENDS, SERVERS, fresh_database

SERVED = [name for name in SERVERS if name in BACKENDS]
SETTINGS = {
    "postgresql": (
        "SELECT current_setting('TimeZone'), "
        "current_setting('idle_in_transaction_session_timeout')",
        ("UTC", f"{IDLE_TRANSACTION}s"),
    ),
    "mysql": ("SELECT @@time_zone, @@idle_transaction_timeout", ("+00:00", IDLE_TRANSACTION)),
}
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


@pytest.mark.skipif("postgresql" not in SERVED, reason="needs TEST_POSTGRESQL_URL")
@pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")
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
