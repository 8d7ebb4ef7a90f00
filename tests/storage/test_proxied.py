import pickle
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from sgquant_optuna.exceptions import StorageError
from sgquant_optuna.search.workers.budget import optimize_within_budget
from sgquant_optuna.storage import heartbeats_from_creation, open_storage
from sgquant_optuna.storage.processes import process_mark
from tests.databases import Proxy

FAST = {"heartbeat_interval": 1, "grace_period": 2}


@pytest.fixture(scope="module", params=["grpc", "journal"])
def url(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("proxied")
    if request.param == "journal":
        yield f"journal:///{folder}/study.log"
        return
    pytest.importorskip("grpc")
    proxy = Proxy(folder / "s.db")
    proxy.start()
    yield proxy.url
    proxy.kill()


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


def test_a_proxy_that_is_not_there_is_reported(monkeypatch):
    monkeypatch.setattr("sgquant_optuna.storage.proxied._CONNECT_SECONDS", 0.2)
    with pytest.raises(StorageError, match="nobody answers; start one there: sgquant serve"):
        open_storage("grpc://127.0.0.1:1")


@pytest.fixture
def losing(tmp_path):
    """A proxied study, and a function that lets the next answer to a request get lost."""
    grpc = pytest.importorskip("grpc")
    proxy = Proxy(tmp_path / "s.db")
    proxy.start()
    study = optuna.create_study(storage=open_storage(proxy.url), study_name="s")
    stub = study._storage._stub

    class Lost(grpc.RpcError):
        code = staticmethod(lambda: grpc.StatusCode.UNAVAILABLE)
        details = staticmethod(lambda: "Socket closed")

    def lose(name):
        real = getattr(stub, name)

        def call(request):
            setattr(stub, name, real)
            real(request)
            raise Lost

        setattr(stub, name, call)

    yield study, lose
    proxy.kill()


@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed")
def test_an_answer_of_the_proxy_that_got_lost_doubles_nothing(losing):
    study, lose = losing
    lose("CreateNewTrial")
    trial = study.ask()
    lose("SetTrialParameter")
    trial.suggest_int("x", 0, 9)
    lose("SetTrialStateValues")
    study.tell(trial, 0.5)
    lose("CreateNewTrial")
    study.add_trial(study.trials[0])
    assert [trial.value for trial in study.trials] == [0.5, 0.5]
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):  # another's result
        study._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.5])


@pytest.mark.skipif(process_mark() is None, reason="needs /proc")
def test_a_worker_behind_a_proxy_that_is_killed_as_it_begins_is_noticed_at_once(
    losing, monkeypatch
):
    study, _ = losing
    *space, pid, started = process_mark().split(" ")
    dead = " ".join([*space, pid, str(int(started) + 1)])
    with monkeypatch.context() as other, heartbeats_from_creation():
        other.setattr("sgquant_optuna.storage.processes.process_mark", lambda: dead)
        study._storage.create_new_trial(study._study_id)
    optimize_within_budget(study, lambda trial: 0.0, lambda: 2)
    assert [trial.state for trial in study.trials] == [
        *(TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE)
    ]


def test_opening_waits_for_a_proxy_that_starts_later_if_asked_to(tmp_path, monkeypatch):
    pytest.importorskip("grpc")
    monkeypatch.setattr("sgquant_optuna.storage.proxied._CONNECT_SECONDS", 0.2)
    proxy = Proxy(tmp_path / "s.db")
    later = threading.Timer(0.5, proxy.start)
    later.start()
    try:
        assert open_storage(proxy.url, wait=60).get_all_studies() == []
    finally:
        later.join()
        proxy.kill()


def test_a_journal_needs_a_file_that_can_be_written(tmp_path):
    with pytest.raises(StorageError, match="expected journal:///FILE"):
        open_storage("journal://")
    with pytest.raises(StorageError, match="there is no such file"):
        open_storage(f"journal:///{tmp_path}/none.log", create=False)
    Path("diary.txt").write_text("dear diary\nit rained\n")
    with pytest.raises(StorageError, match="expected an Optuna journal, got another file"):
        open_storage(f"journal:///{tmp_path}/diary.txt")
    with pytest.raises(StorageError, match="cannot be written"):
        open_storage(f"journal:///{tmp_path}/diary.txt/x.log")


@pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")
def test_a_proxy_that_is_paused_costs_a_deadline_and_nothing_is_written_twice(
    tmp_path, monkeypatch, caplog
):
    pytest.importorskip("grpc")
    monkeypatch.setattr("sgquant_optuna.storage.proxied._DEADLINE", 1.0)
    proxy = Proxy(tmp_path / "s.db")
    proxy.start()
    study = optuna.create_study(storage=open_storage(proxy.url))
    proxy.pause()
    threading.Timer(2.5, proxy.resume).start()
    study.tell(study.ask(), 1.0)
    assert [trial.values for trial in study.trials] == [[1.0]]
    assert "Deadline Exceeded; trying again" in caplog.text
    proxy.kill()
