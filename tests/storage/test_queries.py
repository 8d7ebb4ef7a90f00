import importlib.util
import json
import sys
from decimal import Decimal
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState

from sgquant_optuna.storage import open_storage
from tests.databases import BACKENDS, fresh_database

FILE = Path(__file__).parents[2] / "storage" / "query.py"
NAME = "o'brien; DROP TABLE trials; --"  # a name is a parameter, never a part of the SQL
WIDTHS = optuna.distributions.CategoricalDistribution([1, 2, 4, 8])

spec = importlib.util.spec_from_file_location("storage_query", FILE)
assert spec is not None and spec.loader is not None
query = importlib.util.module_from_spec(spec)
spec.loader.exec_module(query)

# conv1 bits, conv2 bits, bytes, drop, worker
MEASURED = [
    (1, 2, 100.0, 0.9, "a:1"),
    (2, 2, 200.0, 0.5, "a:1"),
    (4, 2, 300.0, 0.1, "b:2"),
    (8, 8, 900.0, -0.2, "b:2"),
    (4, 2, 300.0, 1e-05, "b:2"),
]


@pytest.fixture(scope="module", params=BACKENDS)
def connection(request, tmp_path_factory):
    with fresh_database(request.param, tmp_path_factory.mktemp("queries")) as url:
        storage = RDBStorage(url, engine_kwargs={"poolclass": sa.pool.NullPool})
        study = optuna.create_study(storage=storage, study_name=NAME)
        other = optuna.create_study(storage=storage, study_name="other")
        other.add_trial(trial(1, 1, 1.0, 0.0, "c:3"))
        for values in MEASURED:
            study.add_trial(trial(*values))
        broken = study.ask({"conv1/embedding": WIDTHS})
        broken.set_user_attr("worker", "a:1")
        study.tell(broken, state=TrialState.FAIL)
        RetryHeartbeatStaleTrialCallback()(study, study.trials[-1])
        surplus = study.ask()
        assert surplus.params == broken.params
        surplus = study.ask()
        surplus.set_user_attr("sgquant:surplus", True)
        study.tell(surplus, state=TrialState.FAIL)
        engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        with engine.connect() as opened:
            yield opened


def trial(conv1, conv2, size, drop, worker):
    bits = {"conv1/embedding": conv1, "conv2": conv2}
    return optuna.trial.create_trial(
        params=bits,
        distributions=dict.fromkeys(bits, WIDTHS),
        value=size,
        user_attrs={
            "memory_bytes": size,
            "drop_bound": drop,
            "bit_widths": bits,
            "seconds": 2.0,
            "worker": worker,
        },
    )


def rows(connection, name, **parameters):
    columns, found = query.run_query(connection, name, {"study": NAME, **parameters})
    return [dict(zip(columns, row, strict=True)) for row in found]


def test_the_best_under_a_budget_keep_the_most_accuracy(connection):
    found = rows(connection, "best_under_budget", max_bytes=300, max_drop=0.5)
    assert [row["trial"] for row in found] == [4, 2, 1]
    assert [float(row["memory_bytes"]) for row in found] == [300.0, 300.0, 200.0]
    assert float(found[0]["drop_bound"]) == pytest.approx(1e-05)
    assert json.loads(found[0]["bit_widths"]) == {"conv1/embedding": 4, "conv2": 2}
    assert [r["trial"] for r in rows(connection, "best_under_budget", number=2)] == [3, 4]


def test_bits_by_layer_count_the_feasible(connection):
    found = [tuple(row.values()) for row in rows(connection, "bits_by_layer", max_drop=0.5)]
    as_numbers = [(*row[:5], None if row[5] is None else float(Decimal(row[5]))) for row in found]
    assert as_numbers == [
        ("conv1", "conv1/embedding", 1, 1, 0, None),
        ("conv1", "conv1/embedding", 2, 1, 1, 200.0),
        ("conv1", "conv1/embedding", 4, 2, 2, 300.0),
        ("conv1", "conv1/embedding", 8, 1, 1, 900.0),
        ("conv2", "conv2", 2, 4, 3, 200.0),
        ("conv2", "conv2", 8, 1, 1, 900.0),
    ]


def test_trials_are_counted_by_worker_and_state(connection):
    found = rows(connection, "trials_by_worker")
    assert sorted((row["worker"], row["state"], row["trials"]) for row in found) == [
        ("a:1", "COMPLETE", 2),
        ("a:1", "FAIL", 1),
        ("a:1", "RUNNING", 1),
        ("b:2", "COMPLETE", 3),
        ("unknown", "FAIL", 1),
    ]
    assert all(row["last_seen"] for row in found)


def test_throughput_is_counted_by_hour(connection):
    found = rows(connection, "throughput_by_hour")
    assert sum(row["trials"] for row in found) == 5
    assert all(float(row["mean_seconds"]) == 2.0 for row in found)
    assert all(len(row["hour"]) == len("2026-01-31 23") for row in found)


def test_a_configuration_measured_twice_is_found(connection):
    (found,) = rows(connection, "duplicate_configurations")
    assert json.loads(found.pop("bit_widths")) == {"conv1/embedding": 4, "conv2": 2}
    assert found == {"trials": 2, "first_trial": 2, "last_trial": 4}


def test_failed_trials_are_reported_with_their_retries(connection):
    found = rows(connection, "failed_and_retried")
    assert [(row["trial"], row["state"], row["retry_of"]) for row in found] == [
        (5, "FAIL", None),
        (6, "RUNNING", "5"),
    ]


def test_a_missing_parameter_is_named(connection):
    with pytest.raises(ValueError, match="query trials_by_worker: expected study"):
        query.run_query(connection, "trials_by_worker", {})


def test_the_command_prints_csv(tmp_path, monkeypatch, capsys):
    study = optuna.create_study(storage=open_storage(tmp_path / "s.db"), study_name="7")
    study.add_trial(trial(1, 2, 100.0, 0.25, "a:1"))
    url = f"sqlite:///{tmp_path}/s.db"
    monkeypatch.setattr(sys, "argv", ["query.py", "best_under_budget", url, "study=7"])
    query.main()
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "trial,memory_bytes,drop_bound,bit_widths"
    assert out[1].startswith("0,100,0.25,")


def ask(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["query.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        query.main()
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1
    assert stop.value.code == 2
    return err


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://me:s3cr3t@127.0.0.1:1/studies", "postgresql+psycopg://me:***@127.0.0.1"),
        ("mysql://me:s3cr3t@127.0.0.1:1/studies", "mysql+pymysql://me:***@127.0.0.1:1/studies"),
        ("postgresql://me:s3cr3t@host:port/studies", "expected a URL such as"),
        ("oracle://me:s3cr3t@host/studies", "expected a URL such as"),
        ("sqlite:///mistyped.db", "mistyped.db: there is no such file"),
        ("mistyped.db", "mistyped.db: there is no such file"),
        ("journal:///study.log", "expected the database itself, got a proxy or a journal"),
    ],
)
def test_a_database_that_cannot_be_asked_is_reported_in_a_line(
    url, told, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("psycopg" if url.startswith("postgresql") else "pymysql")
    open_storage(f"journal:///{tmp_path}/study.log")
    err = ask(monkeypatch, capsys, "trials_by_worker", url, "study=7")
    assert told in err and "s3cr3t" not in err
    assert not Path("mistyped.db").exists()


def test_a_query_that_fails_is_reported_in_a_line(tmp_path, monkeypatch, capsys):
    storage = open_storage("s.db")
    err = ask(monkeypatch, capsys, "trials_by_worker", "s.db")
    assert "query trials_by_worker: expected study; give NAME=VALUE" in err
    with storage.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE trials RENAME COLUMN state TO other"))
    err = ask(monkeypatch, capsys, "trials_by_worker", "s.db", "study=7")
    assert "query trials_by_worker: no such column:" in err


@pytest.mark.parametrize("given", ["s.db", "-"])
def test_a_plain_file_is_asked_and_a_dash_is_the_default_storage(
    given, tmp_path, monkeypatch, capsys
):
    optuna.create_study(storage=open_storage("s.db"), study_name="7")
    monkeypatch.setenv("SGQUANT_STORAGE", "s.db")
    monkeypatch.setattr(sys, "argv", ["query.py", "best_under_budget", given, "study=7"])
    query.main()
    assert capsys.readouterr().out.startswith("trial,memory_bytes")


def test_every_query_only_reads():
    for path in query.FOLDER.glob("*.sql"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("--")]
        assert lines[0].startswith("SELECT"), path
