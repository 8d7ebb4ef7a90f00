"""Fresh databases for tests: SQLite files, and servers whose URL is in the environment."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

SERVERS = {"postgresql": "TEST_POSTGRESQL_URL", "mysql": "TEST_MYSQL_URL"}
BACKENDS = ("sqlite", *(name for name, variable in SERVERS.items() if variable in os.environ))


@contextmanager
def fresh_database(backend: str, folder: Path) -> Iterator[str]:
    """Yield the URL of an empty database, and drop it afterwards."""
    if backend == "sqlite":
        yield f"sqlite:///{folder / 'study.db'}"
        return
    server = sa.make_url(os.environ[SERVERS[backend]])
    name = f"sgquant_{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        force = " WITH (FORCE)" if backend == "postgresql" else ""
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name}{force}"))
