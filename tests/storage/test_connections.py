import os
import pickle
import ssl
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from sgquant_optuna.storage import connections, open_storage, waits
from sgquant_optuna.storage.connections import close_when_idle
from tests.databases import BACKENDS, SERVERS, fresh_database

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")


SERVERS_HERE = [name for name in SERVERS if name in BACKENDS]


CONNECTIONS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = :name",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = :name",
}


@pytest.mark.parametrize("backend", SERVERS_HERE)
def test_no_connection_to_a_server_is_held_between_two_uses(backend, tmp_path):
    server = sa.create_engine(os.environ[SERVERS[backend]])
    with fresh_database(backend, tmp_path) as url, server.connect() as watching:
        storage = open_storage(url)
        for opened in (storage, pickle.loads(pickle.dumps(storage))):
            study = optuna.create_study(storage=opened, study_name="s", load_if_exists=True)
            study.optimize(lambda trial: trial.suggest_int("x", 0, 9), n_trials=1)
            deadline = time.monotonic() + 10  # a server takes a moment to see that one has left
            query, name = sa.text(CONNECTIONS[backend]), {"name": sa.make_url(url).database}
            while watching.execute(query, name).scalar():
                watching.rollback()  # PostgreSQL's statistics stand still during a transaction
                assert time.monotonic() < deadline, "a connection is held"
                time.sleep(0.02)
    server.dispose()


def test_a_connection_that_broke_while_it_was_idle_is_replaced_unseen(storage):
    if storage.engine.name == "sqlite":
        pytest.skip("a file has no connections that break")
    study = optuna.create_study(storage=storage)
    killed = []

    def kill(connection, record, proxy):
        if not killed:
            killed.append(True)
            record.info["used"] = time.monotonic() - 1
            connection.close()

    # Before the check, as if the server had ended it.
    sa.event.listen(storage.engine, "checkout", kill, insert=True)
    assert study.ask().number == 0
    assert killed


@pytest.mark.skipif("postgresql" not in BACKENDS, reason="needs TEST_POSTGRESQL_URL")
def test_a_connection_that_fell_silent_while_it_was_idle_is_replaced(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from fault_proxy import Harm, fault_proxy

    monkeypatch.setattr(connections, "_PING_SECONDS", 0.5)
    monkeypatch.setattr(connections, "_UNCHECKED_SECONDS", 0.0)
    monkeypatch.setattr(waits, "_LOOK", 0.1)
    with fresh_database("postgresql", tmp_path) as url, fault_proxy(url) as proxy:
        storage = open_storage(proxy.url())
        study = optuna.create_study(storage=storage, study_name="s")
        study.ask()
        assert proxy.harm(Harm.STALL) >= 1
        began = time.monotonic()
        study.ask()
        assert 0.4 < time.monotonic() - began < 8
        assert len(study.get_trials()) == 2
        storage.engine.dispose()


@pytest.mark.skipif("mysql" not in BACKENDS, reason="needs TEST_MYSQL_URL")
def test_the_certificates_of_the_system_are_not_read_for_each_connection(tmp_path, monkeypatch):
    with fresh_database("mysql", tmp_path) as url:
        study = optuna.create_study(storage=open_storage(url), study_name="s")
        with monkeypatch.context() as patched:
            patched.setattr(ssl, "create_default_context", None)  # any more use of it fails
            study.optimize(lambda trial: trial.suggest_int("x", 0, 9), n_trials=2)
        assert len(study.trials) == 2


@pytest.mark.parametrize("backend", SERVERS_HERE)
def test_a_connection_that_is_used_for_longer_is_closed_after_it_came_back(backend):
    engine = sa.create_engine(os.environ[SERVERS[backend]])
    close_when_idle(engine, seconds=0.05)
    with engine.connect() as connection:  # begins a watch
        connection.execute(sa.text("SELECT 1"))
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        time.sleep(0.2)
        used = connection.connection.dbapi_connection
    deadline = time.monotonic() + 10
    while not (used.closed if backend == "postgresql" else not used.open):
        assert time.monotonic() < deadline, "it stays open"
        time.sleep(0.02)
