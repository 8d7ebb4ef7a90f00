"""Reads storage URLs, and writes them without their passwords."""

from __future__ import annotations

import re
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL

from sgquant_optuna.exceptions import StorageError

# SQLAlchemy's own defaults for these names change between versions, or are other packages.
_DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",
    "mariadb+pymysql": "mysql+pymysql",
}
PROXY, JOURNAL = "grpc", "journal"
_EXTRAS = {"psycopg": "postgresql", "pymysql": "mysql", PROXY: "grpc"}
_KINDS = ("sqlite", "postgresql", "mysql", "mariadb", PROXY, JOURNAL)


def parse_url(url: str | Path) -> URL:
    """Read a URL, or the path of an SQLite file.

    Raises:
        StorageError:
            If it is no URL of a storage that is known here.
    """
    if isinstance(url, Path) or "://" not in url:
        return URL.create("sqlite", database=str(url))
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        # Its words may hold parts of the password, so the cause is not told.
        raise StorageError(
            f"storage: expected a URL such as sqlite:///storage/sgquant.db or "
            f"postgresql://USER@HOST/DATABASE, got {_without_login(url)!r}; characters such as "
            "@ : / in a password are written %40 %3A %2F"
        ) from None
    parsed = parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))
    if parsed.get_backend_name() not in _KINDS:
        raise StorageError(
            f"storage: expected a URL such as sqlite:///FILE of one of {', '.join(_KINDS)}, got "
            f"{parsed.drivername}://"
        )
    return parsed


def shown_url(url: URL) -> str:
    """Return the URL with stars for its passwords."""
    hidden = {key: "***" if "pass" in key.lower() else value for key, value in url.query.items()}
    return url.set(query=hidden).render_as_string(hide_password=True)


def missing_driver(url: URL) -> StorageError:
    """Return the error that says how to install the driver of a URL."""
    driver = url.drivername.partition("+")[2] or url.drivername
    extra = _EXTRAS.get(driver)
    package = f"'sgquant-optuna[{extra}]'" if extra else driver
    return StorageError(
        f"storage {shown_url(url)}: its driver {driver} is missing; pip install {package}"
    )


def _without_login(url: str) -> str:
    return re.sub(r"://.*@", "://***@", url, flags=re.DOTALL)
