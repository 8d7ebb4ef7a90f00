"""Fixtures of the sampler's tests; each test gets a database of its own."""

import os
import uuid
from collections.abc import Iterator

import optuna
import pytest
import sqlalchemy as sa

from tests.sampler.toy_study import drop_of, new_sampler, objective

SERVERS = {"postgresql": "TEST_POSTGRESQL_URL", "mysql": "TEST_MYSQL_URL"}


@pytest.fixture(params=["sqlite", *SERVERS])
def database_url(request: pytest.FixtureRequest, tmp_path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/study.db"
        return
    variable = SERVERS[request.param]
    server = os.environ.get(variable)
    if not server:
        pytest.skip(f"{variable} is not set")
    name = f"sampler_{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    yield sa.make_url(server).set(database=name).render_as_string(hide_password=False)
    force = " WITH (FORCE)" if request.param == "postgresql" else ""
    with engine.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name}{force}"))
    engine.dispose()


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(params=["default", "paper"])
def acquisition(request):
    return request.param


@pytest.fixture(scope="package")
def study():
    """A constrained study of 60 trials; tests must not change it."""

    def with_drop(trial):
        value = objective(trial)
        trial.set_user_attr("accuracy_drop", drop_of(trial.params))
        return value

    study = optuna.create_study(sampler=new_sampler())
    study.optimize(with_drop, n_trials=60)
    return study
