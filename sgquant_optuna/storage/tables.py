"""Recognizes by its tables a database of Optuna, an empty one, and that of another program."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.storage.limits import limit_waits
from sgquant_optuna.storage.urls import shown_url

_VERSION_TABLE = models.VersionInfoModel.__tablename__


def check_tables(url: URL, *, create: bool) -> None:
    """Check the tables of a database before Optuna creates its own; nothing is written.

    Args:
        url:
            URL with a driver.
        create:
            Whether an empty database is accepted, because tables may be created.

    Raises:
        StorageError:
            If the database is of another program, or if it is empty and not accepted.
        sqlalchemy.exc.SQLAlchemyError:
            If the database cannot be read.
    """
    engine = sa.create_engine(url, poolclass=NullPool)
    limit_waits(engine)
    try:
        with engine.connect() as connection:
            inspector = sa.inspect(connection)
            found = set(inspector.get_table_names())
            if found and not _is_optunas(inspector, found):
                some = ", ".join(sorted(found)[:3])
                raise StorageError(
                    f"storage {shown_url(url)}: expected a database of its own for studies, got "
                    f"that of another program (tables {some}); nothing was changed"
                )
    finally:
        engine.dispose()
    if not found and not create:
        raise StorageError(
            f"storage {shown_url(url)}: no studies yet; sgquant search or init makes one"
        )


def _is_optunas(inspector: Any, found: set[str]) -> bool:
    """Tell whether tables are Optuna's, of any version, or being created by a process now."""
    tables: dict[str, sa.Table] = dict(models.BaseModel.metadata.tables)
    # Other versions have other columns, but the table with the version stays the same.
    checked = {_VERSION_TABLE} if _VERSION_TABLE in found else found & set(tables)
    return bool(checked) and all(
        {column.name for column in tables[name].columns}
        <= {column["name"] for column in inspector.get_columns(name)}
        for name in checked
    )
