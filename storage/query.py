"""Runs one of the read-only queries on a study database, and prints its rows as CSV.

python storage/query.py best_under_budget storage/sgquant.db study=NAME max_bytes=50000
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from optuna.storages import RDBStorage

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.storage import open_storage, outage

FOLDER = Path(__file__).parent / "queries"
NAMES = sorted({path.name.split(".")[0] for path in FOLDER.glob("*.sql")})
DEFAULTS: dict[str, Any] = {"max_bytes": 1e18, "max_drop": 0.5, "number": 10}
BAD_INPUT = 2


def query_file(name: str, dialect: str) -> Path:
    """Return the file of a query: that for the dialect if there is one."""
    dialect = "mysql" if dialect == "mariadb" else dialect
    special = FOLDER / f"{name}.{dialect}.sql"
    return special if special.exists() else FOLDER / f"{name}.sql"


def run_query(
    connection: sa.Connection, name: str, parameters: dict[str, Any]
) -> tuple[list[str], Sequence[sa.Row[Any]]]:
    """Return the column names and the rows of a query.

    Args:
        connection:
            Connection to the study database.
        name:
            Name of the query, one of ``NAMES``.
        parameters:
            Values for ``study`` and for the parameters in the head of the query's file; some have
            defaults.

    Raises:
        ValueError:
            If a parameter is missing.
    """
    statement = sa.text(query_file(name, connection.dialect.name).read_text())
    wanted = statement.compile().params
    given = {**DEFAULTS, **parameters}
    if missing := sorted(set(wanted) - set(given)):
        raise ValueError(f"query {name}: expected {', '.join(missing)}; give NAME=VALUE")
    result = connection.execute(statement, {key: given[key] for key in wanted})
    return list(result.keys()), result.fetchall()


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _ask(
    url: str | None, name: str, parameters: dict[str, Any]
) -> tuple[list[str], Sequence[sa.Row[Any]]]:
    # A person waits at the terminal, so nothing is repeated when the server is away.
    storage = open_storage(url, create=False, retry_seconds=0.0)
    if not isinstance(storage, RDBStorage):
        raise StorageError("storage: expected the database itself, got a proxy or a journal")
    with storage.engine.connect() as connection:
        return run_query(connection, name, parameters)


def main() -> None:
    """Print a query's rows as CSV; exit with 2 and one line on bad input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("url", help="URL, file of SQLite, or - for SGQUANT_STORAGE")
    parser.add_argument("parameters", nargs="*", metavar="NAME=VALUE")
    arguments = parser.parse_args()
    parameters: dict[str, Any] = {}
    for text in arguments.parameters:
        name, _, value = text.partition("=")
        parameters[name] = value if name == "study" else _value(value)
    url = None if arguments.url == "-" else arguments.url
    try:
        columns, rows = _ask(url, arguments.name, parameters)
    except (StorageError, ValueError) as error:
        text = str(error)
    except sa.exc.SQLAlchemyError as error:
        text = f"query {arguments.name}: {outage(error)}"
    else:
        writer = csv.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows(rows)
        return
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
