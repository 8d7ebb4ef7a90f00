"""Says in plain words that a server has no free connection, and what to do.

Such a server is waited for as one that is away, for a worker that ends frees its connections.
"""

from __future__ import annotations

from typing import Any

PER_WORKER = 2
"""Connections of a worker at most: one of its trial, and one of the heartbeat beside it."""

_MYSQL_FULL = {1040: "max_connections", 1203: "max_user_connections", 1226: "max_user_connections"}
MYSQL_FULL = frozenset(_MYSQL_FULL)
"""Codes of MariaDB's errors where there is no free connection."""
# PostgreSQL's drivers give no code for a refused connection. The last one is PgBouncer's.
_POSTGRESQL_FULL = {
    "too many clients already": "max_connections",
    "remaining connection slots are reserved": "max_connections",
    "too many connections for role": "the CONNECTION LIMIT of the role",
    "too many connections for database": "the CONNECTION LIMIT of the database",
    "no more connections allowed": "max_client_conn",
}


class _Server:
    """What the server of this process said of itself while it accepted connections."""

    max_connections: int | None = None


def note_max_connections(number: object) -> None:
    """Keep how many connections the server allows: one that is full cannot be asked."""
    _Server.max_connections = int(str(number))


def said_of_full_server(error: Any) -> str | None:
    """Return in plain words that a server is full; ``None`` for other errors.

    Args:
        error:
            Error of a driver.
    """
    setting = _setting(error)
    if setting is None:
        return None
    allowed = _Server.max_connections if setting == "max_connections" else None
    if allowed is None:
        fact = f"each worker takes at most {PER_WORKER}, so W workers need {PER_WORKER}W"
    else:
        fact = (
            f"it allows {allowed}, and each worker takes at most {PER_WORKER}, so "
            f"{allowed // PER_WORKER} workers fill it"
        )
    return f"the server has no free connection: {fact}; raise {setting} or start fewer workers"


def _setting(error: Any) -> str | None:
    """Return what limits the connections of a server that is full."""
    code = error.args[0] if error.args else None
    if isinstance(code, int):  # pymysql, mysqlclient
        if code == 1226 and "connections" not in str(error):  # of queries an hour
            return None
        return _MYSQL_FULL.get(code)
    if not type(error).__module__.startswith("psycopg"):
        return None
    text = str(error).lower()
    return next((name for words, name in _POSTGRESQL_FULL.items() if words in text), None)
