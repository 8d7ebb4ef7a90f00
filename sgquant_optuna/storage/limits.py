"""How long a server waits for a client, and a client for a server; and the clock of both.

A worker that is paused inside a transaction (a suspended laptop, a frozen host) holds its locks,
and all others would wait for them without end. So the server ends such a transaction; the worker
finds its connection lost when it goes on, and repeats what was not committed. A wait for a lock
and a statement end after a while, too, and are repeated; so does a connection whose server falls
silent without closing it.

Servers compute heartbeats with the clock of a session, so every session is in UTC: the time zones
of workers, databases and servers, and the change to summer time, make no trial stale.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from sgquant_optuna.storage.full_servers import note_max_connections

IDLE_TRANSACTION = 20  # seconds that a transaction may wait for its client
LOCK = 15  # seconds that a statement may wait for a lock
STATEMENT = 50  # seconds of a statement; shorter than a client waits for the answer
_MAX_CONNECTIONS = "current_setting('max_connections')"  # of PostgreSQL
_CONNECTING = 10  # seconds
SILENCE = 60  # seconds
_PSYCOPG = {
    "connect_timeout": _CONNECTING,
    # A server that is gone without a word is noticed after 15 + 3 * 5 seconds.
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
}
_PYMYSQL = {
    "connect_timeout": _CONNECTING,
    "read_timeout": SILENCE,
    "write_timeout": SILENCE,
}
_CLIENT_LIMITS = {
    "psycopg": _PSYCOPG,
    "psycopg2": _PSYCOPG,
    "pymysql": _PYMYSQL,
    "mysqldb": _PYMYSQL,
}


def limit_waits(engine: sa.Engine) -> None:
    """Give the connections of an engine limits of time and the time zone UTC.

    Limits in the URL are left alone: options of the driver, PostgreSQL's ``options`` and MySQL's
    ``init_command``. Call it before other hooks that connect.

    Args:
        engine:
            Engine of any database; only those with psycopg, PyMySQL or mysqlclient are changed.
    """
    driver = engine.dialect.driver
    if driver not in _CLIENT_LIMITS:
        return
    set_by_user = " ".join(
        str(engine.url.query.get(name, "")) for name in ("options", "init_command")
    )
    # PgBouncer refuses options at the start of a session, so they are set by statements.
    settings = _of_mysql if engine.dialect.name in ("mysql", "mariadb") else _of_postgresql
    statements = settings(set_by_user)
    allowed = f"SELECT {'@@max_connections' if settings is _of_mysql else _MAX_CONNECTIONS}"
    is_known = False

    def add(dialect: object, record: object, arguments: object, options: dict[str, Any]) -> None:
        for name, value in _CLIENT_LIMITS[driver].items():
            options.setdefault(name, value)

    def set_session(connection: Any, record: object) -> None:
        nonlocal is_known
        with connection.cursor() as cursor:
            cursor.execute(statements)
            if not is_known:  # a server that is full cannot be asked
                cursor.execute(allowed)
                note_max_connections(cursor.fetchone()[0])
                is_known = True
        connection.commit()  # a rollback would undo the settings of PostgreSQL

    sa.event.listen(engine, "do_connect", add)
    sa.event.listen(engine, "connect", set_session)


def _of_postgresql(set_by_user: str) -> str:
    limits = {
        "idle_in_transaction_session_timeout": f"{IDLE_TRANSACTION}s",
        "lock_timeout": f"{LOCK}s",
        "statement_timeout": f"{STATEMENT}s",
    }
    wanted = {name: value for name, value in limits.items() if name not in set_by_user}
    return "SELECT " + ", ".join(
        f"set_config('{name}', '{value}', false)"
        for name, value in {"TimeZone": "UTC", **wanted}.items()
    )


def _of_mysql(set_by_user: str) -> str:
    limits = {
        "innodb_lock_wait_timeout": LOCK,
        "idle_transaction_timeout": IDLE_TRANSACTION,
        "max_statement_time": STATEMENT,
    }
    wanted = {name: value for name, value in limits.items() if name not in set_by_user}
    lock = wanted.pop("innodb_lock_wait_timeout", None)
    first = f", innodb_lock_wait_timeout = {lock}" if lock else ""
    rest = "".join(f", {name} = {value}" for name, value in wanted.items())
    # MySQL has no such limits and takes the second half for a comment.
    return f"SET time_zone = '+00:00'{first} /*M!100300 {rest} */"
