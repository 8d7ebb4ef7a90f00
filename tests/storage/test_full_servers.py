"""A server without free connections is told in plain words, and it is waited for."""

import pymysql
import pytest
import sqlalchemy as sa

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.search.preparation import prepare_search
from sgquant_optuna.search.workers.worker import run_worker
from sgquant_optuna.storage import full_servers, open_storage
from sgquant_optuna.storage.retries import is_server_away, message
from tests.databases import BACKENDS, SERVERS, fresh_database
from tests.small_search import a_plan, artifacts_of

SERVERS_HERE = [name for name in SERVERS if name in BACKENDS]
psycopg = pytest.importorskip("psycopg")


@pytest.mark.parametrize(
    ("error", "setting"),
    [
        (pymysql.err.OperationalError(1040, "Too many connections"), "max_connections"),
        (pymysql.err.OperationalError(1203, "User has ..."), "max_user_connections"),
        (
            pymysql.err.OperationalError(1226, "exceeded the 'max_user_connections' resource"),
            "max_user_connections",
        ),
        (psycopg.OperationalError("FATAL: sorry, too many clients already"), "max_connections"),
        (
            psycopg.OperationalError("FATAL: remaining connection slots are reserved for ..."),
            "max_connections",
        ),
        (
            psycopg.OperationalError('FATAL: too many connections for role "a"'),
            "the CONNECTION LIMIT of the role",
        ),
    ],
)
def test_it_is_waited_for_and_the_setting_is_named(error, setting, monkeypatch):
    wrapped = sa.exc.OperationalError(None, None, error)
    assert is_server_away(wrapped)
    monkeypatch.setattr(full_servers._Server, "max_connections", None)
    assert message(wrapped) == (
        "the server has no free connection: each worker takes at most 2, so W workers need 2W; "
        f"raise {setting} or start fewer workers"
    )
    full_servers.note_max_connections("101")
    told = "it allows 101, and each worker takes at most 2, so 50 workers fill it"
    assert (told in message(wrapped)) == (setting == "max_connections")


def test_other_errors_keep_their_words():
    queries = pymysql.err.OperationalError(1226, "exceeded the 'max_questions' resource")
    for error in (queries, psycopg.OperationalError("no route"), ValueError("too many clients")):
        assert full_servers.said_of_full_server(error) is None


@pytest.mark.parametrize("backend", SERVERS_HERE)
def test_a_full_server_is_told_when_a_storage_is_opened(backend, tmp_path, caplog):
    with fresh_database(backend, tmp_path) as url:
        admin = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        limited, user = sa.make_url(url), f"few_{sa.make_url(url).database[-8:]}"
        with admin.connect() as connection:
            if backend == "postgresql":
                connection.execute(sa.text(f"CREATE ROLE {user} SUPERUSER LOGIN"))
                # Superusers are beyond their own limit, but not beyond that of nobody.
                connection.execute(sa.text(f"ALTER ROLE {user} NOSUPERUSER CONNECTION LIMIT 0"))
            else:
                made = f"CREATE USER {user}@'%' WITH MAX_USER_CONNECTIONS 1"
                connection.execute(sa.text(made))
                connection.execute(sa.text(f"GRANT ALL ON {limited.database}.* TO {user}@'%'"))
            login = limited.set(username=user).render_as_string(hide_password=False)
            held = None
            try:
                if backend == "mysql":
                    held = sa.create_engine(login).connect()
                with pytest.raises(StorageError, match="the server has no free connection: each"):
                    open_storage(login, wait=0.3)
            finally:
                if held is not None:
                    held.close()
                    held.engine.dispose()
                kind = "ROLE" if backend == "postgresql" else "USER"
                connection.execute(sa.text(f"DROP {kind} {user}"))
        admin.dispose()
    (line,) = [text for text in caplog.messages if "no free connection" in text]
    assert line.startswith("database: the server has no free connection")


@pytest.mark.parametrize("backend", SERVERS_HERE)
def test_a_worker_takes_two_connections_at_most(backend, tmp_path):
    with fresh_database(backend, tmp_path) as url:
        storage = open_storage(url, heartbeat_interval=1, grace_period=10)
        opened, most = set(), []

        def note(connection, record):
            opened.add(id(connection))
            most.append(len(opened))

        prepared = prepare_search(a_plan(n_trials=6), storage, artifacts_of(tmp_path))
        storage.engine.dispose()
        sa.event.listen(storage.engine, "connect", note)
        sa.event.listen(storage.engine, "close", lambda one, record: opened.discard(id(one)))
        assert run_worker(prepared) == 6
        storage.engine.dispose()
    assert 1 <= max(most) <= full_servers.PER_WORKER
