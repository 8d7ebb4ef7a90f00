import optuna
import pytest
import sqlalchemy as sa

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.storage import open_storage
from tests.databases import BACKENDS, fresh_database

FOREIGN = (
    ["CREATE TABLE users (name TEXT)"],
    ["CREATE TABLE trials (id INTEGER)", "CREATE TABLE studies (title TEXT)"],
    ["CREATE TABLE alembic_version (version_num TEXT)", "CREATE TABLE users (name TEXT)"],
    ["CREATE TABLE version_info (version TEXT)"],
)


def tables_of(url):
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return set(sa.inspect(connection).get_table_names())


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("statements", FOREIGN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_database_of_another_program_is_refused_and_left_alone(
    backend, statements, create, tmp_path
):
    with fresh_database(backend, tmp_path) as url:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        before = tables_of(url)
        with pytest.raises(StorageError, match="that of another program") as told:
            open_storage(url, create=create)
        assert "\n" not in str(told.value)
        assert tables_of(url) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_database_stays_empty_when_it_is_only_read(backend, tmp_path):
    with fresh_database(backend, tmp_path) as url:
        (tmp_path / "study.db").touch()
        with pytest.raises(StorageError, match="no studies yet; sgquant search or init makes one"):
            open_storage(url, create=False)
        assert not tables_of(url)
        open_storage(url)
        assert open_storage(url, create=False).get_all_studies() == []


def test_tables_whose_making_was_cut_off_are_completed(tmp_path):
    engine = open_storage(tmp_path / "s.db").engine
    with engine.begin() as connection:
        for table in ("version_info", "alembic_version", "trials"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
    engine.dispose()
    optuna.create_study(storage=open_storage(tmp_path / "s.db"), study_name="s").add_trial(
        optuna.trial.create_trial(value=1.0)
    )
