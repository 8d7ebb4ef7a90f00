"""Database servers of our own in temporary folders, to be killed and set to any zone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Protocol

import sqlalchemy as sa

from sgquant_optuna.storage.urls import resolve_url

_STARTING = 60.0  # seconds


class Server(Protocol):
    """A database server that a campaign ends and starts as it likes."""

    @property
    def url(self) -> str:
        """URL of a database that is there from the beginning."""

    def start(self) -> None:
        """Start it and wait until it answers."""

    def kill(self) -> None:
        """End it by SIGKILL."""

    def set_zone(self, hours: int) -> None:
        """Set the time zone of all new sessions that choose none."""


@dataclass(frozen=True)
class Postgresql:
    """A PostgreSQL server."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        """URL of its database."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder}"
        log = self.folder / "log"
        self._run("pg_ctl", "-w", "-l", str(log), "-o", options, "start")

    def stop(self) -> None:
        """Stop it as a crash would: connections are cut, and no checkpoint is written."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def crash(self) -> None:
        """Stop it for two seconds and let it recover."""
        self.stop()
        time.sleep(2)
        self.start()

    def kill(self) -> None:
        """End it by SIGKILL; its processes find that out and end, too."""
        pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in (pid, *map(int, children)):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        while any(Path(f"/proc/{process}").exists() for process in (pid, *children)):
            time.sleep(0.02)  # until then its shared memory is in use

    def set_zone(self, hours: int) -> None:
        """Set the time zone of all new sessions that choose none."""
        # The sign of POSIX: hours behind UTC.
        _execute(self.url, f"ALTER SYSTEM SET timezone TO '<zone>{-hours:+d}'")
        _execute(self.url, "SELECT pg_reload_conf()")

    def create(self) -> None:
        """Make its files."""
        self._run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8")

    def _run(self, program: str, *arguments: str) -> None:
        path = postgresql_program(program)
        if path is None:
            raise FileNotFoundError(
                f"{program}: expected PostgreSQL's server programs, found none"
            )
        login = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*login, path, "-D", str(self.folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder)


def postgresql_program(name: str) -> str | None:
    """Return the path of a program of the newest PostgreSQL here."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


@contextmanager
def own_postgresql() -> Iterator[Postgresql]:
    """Make a cluster in a temporary folder, run it on a free port, remove it afterwards."""
    with _folder_of("postgresql", "postgres") as folder:
        server = Postgresql(folder, _free_port())
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()


class Mariadb:
    """A MariaDB server.

    Args:
        folder:
            Folder that belongs to the user ``mysql``, or to this one if that is not root.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """URL of its database of system tables."""
        return f"mysql+pymysql://root@127.0.0.1:{self.port}/mysql"

    def create(self) -> None:
        """Make its files."""
        login = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        command = ["mariadb-install-db", *self._options, *login]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start(self) -> None:
        """Start it and wait until it answers."""
        program = shutil.which("mariadbd") or shutil.which("mysqld")
        assert program is not None
        network = ["--bind-address=127.0.0.1", f"--port={self.port}"]
        files = [f"--socket={self.folder / 'socket'}", f"--pid-file={self.folder / 'pid'}"]
        small = ["--innodb-buffer-pool-size=64M", "--performance-schema=OFF"]
        with (self.folder / "log").open("ab") as log:
            command = [program, *self._options, *network, *files, *small]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + _STARTING
        while True:
            try:
                return _execute(self.url, "SELECT 1")
            except sa.exc.OperationalError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def kill(self) -> None:
        """End it by SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def set_zone(self, hours: int) -> None:
        """Set the time zone of all new sessions that choose none."""
        _execute(self.url, f"SET GLOBAL time_zone = '{hours:+03d}:00'")

    @property
    def _options(self) -> list[str]:
        user = ["--user=mysql"] if os.geteuid() == 0 else []
        return ["--no-defaults", f"--datadir={self.folder / 'data'}", *user]


@contextmanager
def own_mariadb() -> Iterator[Mariadb]:
    """Make the files of a server in a temporary folder, run it, remove it afterwards."""
    with _folder_of("mariadb", "mysql") as folder:
        server = Mariadb(folder)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.kill()


OWN = {"postgresql": own_postgresql, "mysql": own_mariadb}


def own_kinds() -> list[str]:
    """Return the kinds of servers whose programs are installed."""
    programs = {
        "postgresql": postgresql_program("initdb"),
        "mysql": shutil.which("mariadb-install-db"),
    }
    return [kind for kind, program in programs.items() if program is not None]


@contextmanager
def _folder_of(name: str, user: str) -> Iterator[Path]:
    folder = Path(mkdtemp(prefix=f"sgquant-{name}-"))
    try:
        if os.geteuid() == 0:  # which the servers refuse to run as
            shutil.chown(folder, user)
        yield folder
    finally:
        shutil.rmtree(folder)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _execute(url: str, statement: str) -> None:
    engine = sa.create_engine(
        resolve_url(url), isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool
    )
    with engine.connect() as connection:
        connection.execute(sa.text(statement))
