"""Fresh databases for tests: SQLite files, servers named in the environment, and proxies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
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


class Proxy:
    """A process that serves a database on a free port; it can be killed and started again."""

    def __init__(self, storage: Path | str) -> None:
        self._storage = storage
        self.port = free_port()
        self.url = f"grpc://127.0.0.1:{self.port}"

    def start(self) -> None:
        code = (
            "import sys; from sgquant_optuna.storage import serve_storage; "
            "serve_storage(sys.argv[1], port=int(sys.argv[2]), ready=lambda: print(flush=True))"
        )
        command = [sys.executable, "-c", code, str(self._storage), str(self.port)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"\n", "the proxy did not start"

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
