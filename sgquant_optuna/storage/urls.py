"""Reads the URL of a storage, and shows it without its passwords. No other file parses a URL."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TypeGuard

import sqlalchemy as sa
from sqlalchemy.engine import URL

from sgquant_optuna.exceptions import StorageError

STORAGE_VARIABLE = "SGQUANT_STORAGE"
DEFAULT_FILE = Path("storage") / "sgquant.db"
SQLITE, PROXY, JOURNAL = "sqlite", "grpc", "journal"
# SQLAlchemy's own defaults for these names change between versions, or are other packages.
_DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",
    "mariadb+pymysql": "mysql+pymysql",
}
_EXTRAS = {"psycopg": "postgresql", "pymysql": "mysql", PROXY: "grpc"}
_KINDS = (SQLITE, "postgresql", "mysql", "mariadb", PROXY, JOURNAL)
_STARS = "***"
# What is meant as a URL and has no "://". A path that has a slash before its colon is none.
_MISTYPED = re.compile(
    r"""\s*(?:
        \w[\w+.-]+:                                   # a scheme; a drive has one letter
        | [:;/\\]*[^/]*:[^/]*@ | [^/]*//.*@             # a login
        | (?:sqlite|postgres|mysql|mariadb|grpc|journal)[\w+]*/+[^/]*[:@]
    )""",
    re.IGNORECASE | re.VERBOSE,
)


def resolve_url(where: str | Path | None = None) -> URL:
    """Return the URL of a storage, with its driver.

    Args:
        where:
            URL, or path of an SQLite file; by default the value of ``$SGQUANT_STORAGE``, or else
            ``storage/sgquant.db``.

    Raises:
        StorageError:
            If it is no URL of a known kind of storage.
    """
    where = _given(where)
    if not _is_url(where):
        return URL.create(SQLITE, database=_path(where))
    try:
        url = sa.make_url(where)
    except (sa.exc.ArgumentError, ValueError):
        # Its message may hold parts of the password, so the cause is left out.
        raise StorageError(
            f"storage: expected a URL such as sqlite:///storage/sgquant.db or "
            f"postgresql://USER@HOST/DATABASE, got {_without_login(where)!r}; characters "
            "such as @ : / in a password are written %40 %3A %2F"
        ) from None
    url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
    if url.get_backend_name() not in _KINDS:
        raise StorageError(
            f"storage: expected a URL such as sqlite:///FILE of one of {', '.join(_KINDS)}, got "
            f"{url.drivername}://"
        )
    if file_of(url) is not None:
        assert url.database is not None
        url = url.set(database=os.path.expanduser(url.database))
    return url


def file_of(url: URL) -> Path | None:
    """Return the file of an SQLite database or of a journal.

    ``None`` for servers, for a database in memory, and for URIs that SQLite itself reads
    (``sqlite:///file:...``).
    """
    kind, name = url.get_backend_name(), url.database
    if not name or kind not in (SQLITE, JOURNAL):
        return None
    if kind == SQLITE and (name == ":memory:" or name.startswith("file:")):
        return None
    return Path(name)


def absolute_url(url: URL) -> URL:
    """Return a URL that means the same file from any folder."""
    path = file_of(url)
    return url if path is None else url.set(database=str(path.absolute()))


def shown_url(url: URL) -> str:
    """Return a URL with stars for its passwords."""
    hidden = {key: _STARS if "pass" in key.lower() else value for key, value in url.query.items()}
    text = url.set(query=hidden).render_as_string(hide_password=True)
    return text.replace("%2A" * len(_STARS), _STARS)


def shown_storage(where: str | Path | None = None) -> str:
    """Return a storage as others may read it, from any folder: with stars for its passwords.

    Args:
        where:
            Storage as of :func:`resolve_url`; a path stays a path.

    Raises:
        StorageError:
            If it is no URL of a known kind of storage.
    """
    where = _given(where)
    if not _is_url(where):
        return str(Path(_path(where)).absolute())
    return shown_url(absolute_url(resolve_url(where)))


def missing_driver(url: URL) -> StorageError:
    """Return the error that says how to install the driver of a URL."""
    driver = url.drivername.partition("+")[2] or url.drivername
    extra = _EXTRAS.get(driver)
    package = f"'sgquant-optuna[{extra}]'" if extra else driver
    return StorageError(
        f"storage {shown_url(url)}: its driver {driver} is missing; pip install {package}"
    )


def _given(where: str | Path | None) -> str | Path:
    return os.environ.get(STORAGE_VARIABLE, DEFAULT_FILE) if where is None else where


def _path(where: str | Path) -> str:
    """Return a path with the user's folder in the place of ``~``, or raise for a mistyped URL.

    A mistyped URL may hold a password, so neither a message nor a new file may show it.
    """
    if isinstance(where, str) and _MISTYPED.match(where):
        raise StorageError(
            "storage: expected a URL such as postgresql://USER@HOST/DATABASE or the path of a "
            "file, got what looks like a URL without its ://; a file with a colon is ./NAME"
        )
    return os.path.expanduser(where)


def _is_url(where: str | Path) -> TypeGuard[str]:
    return isinstance(where, str) and "://" in where


def _without_login(url: str) -> str:
    return re.sub(r"://.*@", f"://{_STARS}@", url, flags=re.DOTALL)
