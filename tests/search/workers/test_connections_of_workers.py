"""A worker holds at most two connections to a server: one of its trial, one of its heartbeat."""

import os
import time

import pytest
import sqlalchemy as sa

from sgquant_optuna.search.preparation import prepare_search
from sgquant_optuna.storage import open_storage
from sgquant_optuna.study.loading import load_study
from tests.databases import SERVERS, fresh_database
from tests.search.workers.test_deleted_study import start_worker, workers_of
from tests.small_search import a_plan, artifacts_of
from tests.storage.test_connections import CONNECTIONS, SERVERS_HERE


@pytest.mark.parametrize(
    ("backend", "options", "workers", "parents"),
    [
        ("postgresql", [], 1, 0),
        ("postgresql", ["--n-jobs", "3"], 3, 1),
        ("mysql", ["--n-jobs", "2"], 2, 1),
    ],
)
def test_workers_hold_two_connections_each(backend, options, workers, parents, tmp_path):
    if backend not in SERVERS_HERE:
        pytest.skip(f"needs {SERVERS[backend]}")
    server = sa.create_engine(os.environ[SERVERS[backend]], isolation_level="AUTOCOMMIT")
    with fresh_database(backend, tmp_path) as url, server.connect() as watching:
        storage = open_storage(url)
        prepare_search(a_plan(n_trials=20 * workers), storage, artifacts_of(tmp_path))
        storage.engine.dispose()
        query, name = sa.text(CONNECTIONS[backend]), {"name": sa.make_url(url).database}
        process, counts = start_worker(url, tmp_path, *options), []
        while process.poll() is None:
            counts.append(watching.execute(query, name).scalar_one())
            time.sleep(0.005)
        said = process.communicate()[1]
        assert process.returncode == 0, said
        study = load_study(storage=storage)
        assert len(workers_of(study)) == workers
        storage.engine.dispose()
    server.dispose()
    assert 1 <= max(counts) <= 2 * (workers + parents), max(counts)
