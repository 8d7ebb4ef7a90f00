import pickle
import signal
import socket
import subprocess
import sys
import time

import optuna
import pytest
from optuna.storages import GrpcStorageProxy
from optuna.trial import TrialState

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.storage import open_storage, serve_storage

SERVE = "import sys; from sgquant_optuna.storage import serve_storage; " + (
    "serve_storage(sys.argv[1], port=int(sys.argv[2]))"
)
FAST = {"heartbeat_interval": 1, "grace_period": 2}


@pytest.fixture(scope="module", params=["grpc", "journal"])
def url(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("proxied")
    if request.param == "journal":
        yield f"journal:///{folder}/study.log"
        return
    pytest.importorskip("grpc")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(folder / "s.db"), str(port)])
    GrpcStorageProxy(port=port).wait_server_ready(timeout=60)
    yield f"grpc://127.0.0.1:{port}"
    server.send_signal(signal.SIGTERM)
    server.wait()


def test_a_study_runs_and_its_storage_survives_pickling(url):
    storage = open_storage(url)
    study = optuna.create_study(storage=storage, study_name="runs")
    study.optimize(lambda trial: trial.suggest_int("x", 0, 9), n_trials=3)
    again = pickle.loads(pickle.dumps(storage))
    assert len(optuna.load_study(study_name="runs", storage=again).trials) == 3
    assert again.get_heartbeat_interval() == 60


def test_a_trial_that_stops_beating_is_put_back_once(url):
    study = optuna.create_study(storage=open_storage(url, **FAST), study_name="stale")
    storage = study._storage
    dead = storage.create_new_trial(study._study_id)
    alive = storage.create_new_trial(study._study_id)
    silent = storage.create_new_trial(study._study_id)  # of ask and tell: never beats
    storage.record_heartbeat(dead)
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        storage.record_heartbeat(alive)
        optuna.storages.fail_stale_trials(study)
        time.sleep(0.2)
    optuna.storages.fail_stale_trials(study)
    states = {trial._trial_id: trial.state for trial in study.trials}
    assert states.pop(dead) == TrialState.FAIL
    assert states.pop(alive) == states.pop(silent) == TrialState.RUNNING
    assert list(states.values()) == [TrialState.WAITING]
    storage.record_heartbeat(dead)  # a beat that comes late harms nothing


def test_a_proxy_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr("sgquant_optuna.storage.proxied._PROXY_TIMEOUT", 0.2)
    with pytest.raises(StorageError, match="nobody answers; start one there: sgquant serve"):
        open_storage("grpc://127.0.0.1:1")


def test_without_grpc_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    for call in (lambda: open_storage("grpc://127.0.0.1:1"), serve_storage):
        with pytest.raises(StorageError, match=r"pip install 'sgquant-optuna\[grpc\]'"):
            call()


def test_only_databases_are_served(tmp_path):
    with pytest.raises(ValueError, match="expected a database"):
        serve_storage(f"journal:///{tmp_path}/s.log")
