"""How long a server waits for a client, and a client for a server; and the clock of both.

A worker that is paused inside a transaction (a suspended laptop, a frozen host) holds its locks,
and all others would wait for them without end. So the server ends such a transaction; the worker
finds its connection lost when it goes on, and repeats what was not committed. A server that falls
silent without closing the connection is given up after a while, too.

Servers compute heartbeats with the clock of a session, so every session is in UTC: the time zones
of workers, databases and servers, and the change to summer time, make no trial stale.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

IDLE_TRANSACTION = 20  # seconds that a transaction may wait for its client
_CONNECTING = 10  # seconds
_SILENCE = 60  # seconds; longer than a server waits for a lock
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
    "read_timeout": _SILENCE,
    "write_timeout": _SILENCE,
}
_OPTIONS = {"psycopg": _PSYCOPG, "pymysql": _PYMYSQL}


def limit_waits(engine: sa.Engine) -> None:
    """Give the connections of an engine limits of time and the time zone UTC.

    Limits in the URL are left alone. Call it before other hooks that connect.

    Args:
        engine:
            Engine of any database; only those with psycopg or PyMySQL are changed.
    """
    driver = engine.dialect.driver
    if driver not in _OPTIONS:
        return

    def add(dialect: object, record: object, arguments: object, options: dict[str, Any]) -> None:
        for name, value in _OPTIONS[driver].items():
            options.setdefault(name, value)

    sa.event.listen(engine, "do_connect", add)
    sa.event.listen(engine, "connect", _set_session)


def _set_session(connection: Any, record: object) -> None:
    is_mysql = type(connection).__module__.startswith("pymysql")
    with connection.cursor() as cursor:
        if is_mysql:
            # MySQL has no such limit and takes the second half for a comment.
            cursor.execute(
                "SET time_zone = '+00:00' "
                f"/*M!100300 , idle_transaction_timeout = {IDLE_TRANSACTION} */"
            )
        else:
            cursor.execute(
                "SELECT set_config('TimeZone', 'UTC', false), "
                "set_config('idle_in_transaction_session_timeout', "
                f"'{IDLE_TRANSACTION}s', false)"
            )
    connection.commit()  # a rollback would undo the settings of PostgreSQL
