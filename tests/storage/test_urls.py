from itertools import product
from pathlib import Path

import pytest

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.storage.urls import (
    absolute_url,
    file_of,
    resolve_url,
    shown_storage,
    shown_url,
)

SECRET = "s3cr3t"


def text(url):
    return url.render_as_string(hide_password=False)


def test_an_argument_goes_before_the_environment_and_that_before_the_default(monkeypatch):
    assert text(resolve_url()) == "sqlite:///storage/sgquant.db"
    monkeypatch.setenv("SGQUANT_STORAGE", "mysql://host/db")
    assert text(resolve_url()) == "mysql+pymysql://host/db"
    assert text(resolve_url("mine.db")) == "sqlite:///mine.db"
    assert text(resolve_url(Path("mine.db"))) == "sqlite:///mine.db"


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("sqlite:///s.db", "sqlite"),
        ("postgres://host/db", "postgresql+psycopg"),
        ("postgresql://host/db", "postgresql+psycopg"),
        ("postgresql+pg8000://host/db", "postgresql+pg8000"),
        ("mariadb://host/db", "mysql+pymysql"),
        ("grpc://host:13000", "grpc"),
        ("journal:///s.log", "journal"),
    ],
)
def test_a_url_without_a_driver_gets_ours(given, driver):
    assert resolve_url(given).drivername == driver


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("runs/s.db", "runs/s.db"),
        ("sqlite:////data/s.db?timeout=3", "/data/s.db"),
        ("journal:///s.log", "s.log"),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("sqlite:///file:s.db?mode=ro&uri=true", None),
        ("postgresql://host/db", None),
        ("grpc://host:13000", None),
    ],
)
def test_the_file_of_a_url(given, file):
    assert file_of(resolve_url(given)) == (None if file is None else Path(file))


def test_an_absolute_url_means_the_same_file_from_any_folder(tmp_path):
    shown = text(absolute_url(resolve_url("sqlite:///s.db?timeout=3")))
    assert shown == f"sqlite:///{tmp_path}/s.db?timeout=3"
    assert text(absolute_url(resolve_url("mysql://host/db"))) == "mysql+pymysql://host/db"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("mysql://me:s3cr3t@host/db", "mysql+pymysql://me:***@host/db"),
        ("postgresql://host/db?password=s3cr3t", "postgresql+psycopg://host/db?password=***"),
        (
            "postgresql://host/db?sslpassword=s3cr3t",
            "postgresql+psycopg://host/db?sslpassword=***",
        ),
    ],
)
def test_a_password_is_shown_as_stars(given, shown):
    assert shown_url(resolve_url(given)) == shown
    assert shown_storage(given) == shown


def test_a_path_is_shown_as_a_path(tmp_path, monkeypatch):
    assert shown_storage("s.db") == f"{tmp_path}/s.db"
    assert shown_storage(Path("s.db")) == f"{tmp_path}/s.db"
    assert shown_storage() == f"{tmp_path}/storage/sgquant.db"
    monkeypatch.setenv("SGQUANT_STORAGE", f"mysql://me:{SECRET}@host/db")
    assert shown_storage() == "mysql+pymysql://me:***@host/db"


@pytest.mark.parametrize(
    "url", [f"postgresql://me:{SECRET}@host:port/db", f"oracle://:{SECRET}@h"]
)
def test_what_is_no_url_of_a_storage_is_refused_without_its_password(url):
    with pytest.raises(StorageError, match="expected a URL such as sqlite:///") as error:
        resolve_url(url)
    assert SECRET not in str(error.value)


LOGINS = (f"me:{SECRET}@host", f"me:{SECRET}@host:5432", f":{SECRET}@[::1]")
SCHEMES = ("postgresql", "postgres", "mysql", "mariadb+pymysql", "grpc", "pg", "")
MARKS = (":", ":/", "//", "/", ";//", " ://", ":\\\\", "", ": //")
MISTYPED = [pair for pair in product(SCHEMES, MARKS) if pair != ("pg", "/")]  # that is a path


@pytest.mark.parametrize(("scheme", "mark"), MISTYPED)
def test_a_mistyped_url_is_refused_without_its_password(scheme, mark):
    for login, rest, read in product(LOGINS, ("/db", "", "/db?a=b"), (resolve_url, shown_storage)):
        given = f"{scheme}{mark}{login}{rest}"
        with pytest.raises(StorageError, match="expected a URL such as") as error:
            read(given)
        assert SECRET not in str(error.value) and error.value.__cause__ is None


@pytest.mark.parametrize(
    "path",
    [
        "s.db",
        "a b/c.db",
        "./a:b.db",
        "/tmp/me:x@y.db",
        "C:\\s.db",
        ":memory:",
        "mysql/s.db",
        "..",
        "é.db",
    ],
)
def test_a_path_is_no_mistyped_url(path):
    assert resolve_url(path).database == path
    assert resolve_url(Path(path)).database == str(Path(path))


def test_a_tilde_is_the_folder_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = f"{tmp_path}/s.db"
    for given in ("~/s.db", Path("~/s.db"), "sqlite:///~/s.db", "journal:///~/s.db"):
        assert file_of(resolve_url(given)) == Path(expected)
    assert shown_storage("~/s.db") == expected
    assert shown_storage("sqlite:///~/s.db") == f"sqlite:///{expected}"


def test_other_databases_are_refused_by_name():
    with pytest.raises(StorageError, match="one of sqlite, postgresql, mysql, mariadb, grpc"):
        resolve_url("mssql://host/db")
