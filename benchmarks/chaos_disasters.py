"""A disk that fills, and the check for damage afterwards."""

from __future__ import annotations

import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import sqlalchemy as sa

from sgquant_optuna.storage import open_storage
from sgquant_optuna.storage.databases import StudyDatabase


@dataclass(frozen=True)
class Disk:
    """A small disk."""

    folder: Path

    @property
    def url(self) -> str:
        """URL of the database on it."""
        return f"sqlite:///{self._database}"

    @property
    def _database(self) -> Path:
        return self.folder / "study.db"

    def fill(self) -> None:
        """Leave no free byte for three seconds, also when other processes free some."""
        # SQLite would write over a log that has grown, and never reach the full disk.
        with closing(sqlite3.connect(self._database, timeout=60)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        end = time.monotonic() + 3
        with self.filled() as take_rest:
            while time.monotonic() < end:
                take_rest()
                time.sleep(0.02)

    @contextmanager
    def filled(self) -> Iterator[Callable[[], None]]:
        """Leave no free byte inside the block; yield a function that takes what was freed."""
        ballast = self.folder / "ballast"
        with ballast.open("ab", buffering=0) as file:

            def take_rest() -> None:
                for size in (65536, 1):
                    try:
                        while True:
                            file.write(bytes(size))
                    except OSError:
                        continue

            take_rest()
            yield take_rest
        ballast.unlink()


@contextmanager
def full_disk(*, megabytes: int) -> Iterator[Disk]:
    """Mount a tmpfs, and unmount it afterwards; this needs root."""
    folder = Path(mkdtemp(prefix="sgquant-disk-"))
    options = ["-o", f"size={megabytes}m"]
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], check=True)
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def integrity(url: str) -> str:
    """Return the errors that the database's own check finds; an empty text if there are none."""
    storage = open_storage(url)
    assert isinstance(storage, StudyDatabase)
    with storage.engine.connect() as connection:
        found = _damage(connection)
    storage.engine.dispose()
    return "; ".join(found)


def _damage(connection: sa.Connection) -> list[str]:
    kind = connection.dialect.name
    if kind == "sqlite":
        rows = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        return [row for row in rows if row != "ok"] + [str(row) for row in broken]
    tables = sa.inspect(connection).get_table_names()
    if kind == "mysql":
        rows = connection.exec_driver_sql(f"CHECK TABLE {', '.join(tables)} EXTENDED").all()
        return [str(row) for row in rows if row[3] != "OK"]
    # Raises at the first page or index entry that is wrong.
    connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS amcheck")
    connection.exec_driver_sql(
        "SELECT bt_index_check(i.indexrelid, true) FROM pg_index i "
        "JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = 'public'"
    )
    found = []
    for table in tables:
        sql = f"SELECT * FROM verify_heapam('{table}')"
        found += [str(row) for row in connection.exec_driver_sql(sql).all()]
    return found
