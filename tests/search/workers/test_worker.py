import os
import signal
import threading
import time
from dataclasses import replace

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from sgquant_optuna.exceptions import StudyMismatchError, WorkerError
from sgquant_optuna.search.workers.stopping import Stopped, Stopper
from sgquant_optuna.search.workers.worker import run_worker
from sgquant_optuna.storage.attributes import PROCESS_ATTR, SURPLUS_ATTR
from sgquant_optuna.storage.processes import process_mark, process_name
from sgquant_optuna.study.early_stop import EarlyStop
from tests.databases import Proxy
from tests.small_search import join

# Optuna says so of ask(), with which these tests stand for other workers.
pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed")


@pytest.fixture
def joined(folder):
    return join(folder)


def states(study):
    return [trial.state for trial in study.get_trials(deepcopy=False)]


def test_it_measures_what_the_plan_asks_for_and_signs_each_trial(joined):
    assert run_worker(joined) == 4
    assert states(joined.study) == [TrialState.COMPLETE] * 4
    assert {trial.user_attrs["worker"] for trial in joined.study.trials} == {process_name()}
    assert run_worker(joined) == 0


def test_its_own_limit_ends_it_earlier(joined):
    assert run_worker(joined, n_trials=3) == 3
    assert run_worker(joined, n_trials=3) == 1


def test_a_search_that_has_settled_ends_for_all_its_workers(joined, monkeypatch):
    replace(joined.plan, patience=2).save(joined.study)
    promises = iter([0.5, 0.001, 0.001, 0.001])

    def promise(study, trial):
        trial_id = study.trials[trial.number]._trial_id
        study._storage.set_trial_user_attr(trial_id, "predicted", {"gain": next(promises)})

    monkeypatch.setattr(
        type(joined.study.sampler),
        "_record_prediction",
        lambda self, study, trial, choice: promise(study, trial),
    )
    assert run_worker(joined) == 3
    assert run_worker(joined) == 0
    assert EarlyStop.load(joined.study).why == "settled"
    replace(joined.plan, patience=0).save(joined.study)
    assert run_worker(joined) == 1


def test_no_trial_begins_after_the_timeout(joined):
    assert run_worker(joined, timeout=1e-9) == 0
    assert EarlyStop.load(joined.study).why == "timeout"
    timed = replace(joined, plan=replace(joined.plan, timeout=1e-9))
    assert run_worker(timed) == 0
    assert run_worker(timed, timeout=1e9) == 4
    assert EarlyStop.load(joined.study) is None


def test_a_failing_trial_is_replaced_and_three_in_a_row_end_it(joined, monkeypatch):
    monkeypatch.setattr("sgquant_optuna.search.workers.worker._PAUSE", 0.0)
    measure, calls = type(joined.objective)._measure, []

    def fails(failing):
        def call(*arguments):
            calls.append(arguments)
            if len(calls) in failing:
                raise MemoryError("no space")
            return measure(*arguments)

        return call

    monkeypatch.setattr(type(joined.objective), "_measure", fails({2, 3}))
    assert run_worker(joined) == 4
    assert states(joined.study).count(TrialState.FAIL) == 2
    calls.clear()
    monkeypatch.setattr(type(joined.objective), "_measure", fails({1, 2, 3}))
    replace(joined.plan, n_trials=9).save(joined.study)
    failed = "3 trials failed in a row, the last by MemoryError: no space"
    with pytest.raises(WorkerError, match=failed):
        run_worker(joined)


def test_a_study_signed_by_another_search_ends_it_at_once(joined, folder):
    record = joined.study.user_attrs["sgquant:record"]
    record["fingerprint"]["graph"]["nodes"] = 3
    joined.study.set_user_attr("sgquant:record", record)
    joined.objective._checked_studies.clear()
    with pytest.raises(StudyMismatchError, match="nodes: was 3, is 1797"):
        run_worker(joined)


def interrupted_in_trial(joined, monkeypatch, *, grace, signals=1):
    """Run a worker whose second trial lasts until a signal; return the stopper."""
    stopper, measure, calls = Stopper(grace), type(joined.objective)._measure, []

    def slow(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        return measure(*arguments)

    with monkeypatch.context() as patch, stopper.installed(), stopper.protected():
        patch.setattr(type(joined.objective), "_measure", slow)
        try:
            run_worker(joined, stopper=stopper)
        except Stopped:
            return stopper, True
    return stopper, False


def test_a_signal_lets_the_trial_finish_within_the_grace_time(joined, monkeypatch):
    stopper, interrupted = interrupted_in_trial(joined, monkeypatch, grace=20.0)
    assert not interrupted
    assert stopper.exit_code == 128 + signal.SIGTERM
    assert states(joined.study) == [TrialState.COMPLETE] * 2


@pytest.mark.parametrize(("grace", "signals"), [(0.0, 1), (0.05, 1), (20.0, 2)])
def test_otherwise_the_trial_goes_back_and_is_run_again_as_it_was(
    grace, signals, joined, monkeypatch
):
    stopper, interrupted = interrupted_in_trial(joined, monkeypatch, grace=grace, signals=signals)
    assert interrupted
    assert stopper.exit_code == 128 + signal.SIGTERM
    assert states(joined.study) == [TrialState.COMPLETE, TrialState.WAITING]
    released = joined.study.trials[1].params
    assert released
    assert run_worker(joined) == 3
    trials = joined.study.trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert trials[1].params == released
    assert len({tuple(trial.params.items()) for trial in trials}) == 4


def test_signals_mean_what_they_did_before_after_a_worker(joined):
    before = signal.getsignal(signal.SIGTERM)
    with Stopper(0.0).installed():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_worker_in_another_thread_leaves_signals_alone(joined):
    finished = []

    def work():
        with Stopper(0.0).installed() as stopper:
            finished.append(run_worker(joined, stopper=stopper))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert finished == [4]


def test_being_declared_stale_costs_the_result_and_not_the_worker(joined, monkeypatch):
    measure, calls = type(joined.objective)._measure, []

    def stalls(*arguments):
        calls.append(arguments)
        measured = measure(*arguments)
        if len(calls) == 2:  # the end of a long pause: another worker has failed the trial
            running = joined.study.get_trials(states=(TrialState.RUNNING,))[0]
            joined.study._storage.set_trial_state_values(running._trial_id, TrialState.FAIL)
        return measured

    monkeypatch.setattr("sgquant_optuna.search.workers.worker._PAUSE", 0.0)
    monkeypatch.setattr(type(joined.objective), "_measure", stalls)
    run_worker(joined)
    assert states(joined.study).count(TrialState.COMPLETE) == 4
    assert states(joined.study).count(TrialState.FAIL) == 1


def test_a_database_that_goes_away_for_a_while_costs_nothing(joined, monkeypatch):
    monkeypatch.setattr("sgquant_optuna.search.workers.worker._PAUSE", 0.01)
    storage, calls = type(joined.study._storage), []

    def unreliable(name):
        real = getattr(storage, name)

        def call(self, *arguments, **options):
            calls.append(name)
            if 12 <= len(calls) < 20:  # in the middle of the second trial
                raise StorageInternalError("server closed the connection")
            return real(self, *arguments, **options)

        return call

    for name in ("set_trial_user_attr", "set_trial_state_values", "set_trial_system_attr"):
        monkeypatch.setattr(storage, name, unreliable(name))
    run_worker(joined)
    monkeypatch.undo()
    assert len(calls) > 30
    assert states(joined.study) == [TrialState.COMPLETE] * 4


def fail_to_write(monkeypatch, storage, times):
    """Let the database refuse to make the next trials, while it can be read."""
    create, refused = type(storage).create_new_trial, []

    def refuse(self, *arguments, **options):
        if len(refused) == times:
            return create(self, *arguments, **options)
        refused.append(arguments)
        raise StorageInternalError("attempt to write a readonly database")

    monkeypatch.setattr(type(storage), "create_new_trial", refuse)


def test_pauses_grow_while_the_database_can_be_read_and_not_written(joined, monkeypatch):
    pauses = []
    fail_to_write(monkeypatch, joined.study._storage, times=6)
    monkeypatch.setattr("sgquant_optuna.search.workers.worker.time.sleep", pauses.append)
    assert run_worker(joined) == 4
    assert pauses == [1, 2, 4, 8, 16, 30]
    pauses.clear()
    fail_to_write(monkeypatch, joined.study._storage, times=1)  # the next outage begins anew
    replace(joined.plan, n_trials=5).save(joined.study)
    assert run_worker(joined) == 1
    assert pauses == [1]


def test_a_database_that_stays_away_ends_the_worker_with_an_error_of_ours(joined, monkeypatch):
    pauses = []
    fail_to_write(monkeypatch, joined.study._storage, times=99)
    monkeypatch.setattr("sgquant_optuna.search.workers.worker.time.sleep", pauses.append)
    with pytest.raises(WorkerError, match=r"stays away \(attempt to write a readonly database\)"):
        run_worker(joined)
    assert 200 < sum(pauses) < 300


def test_a_proxy_that_is_killed_during_a_trial_and_comes_back_costs_nothing(folder, monkeypatch):
    pytest.importorskip("grpc")
    proxy = Proxy(folder / "s.db")
    proxy.start()
    joined = join(folder, proxy.url)
    measure, calls = type(joined.objective)._measure, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            proxy.kill()
            calls.append(threading.Timer(0.5, proxy.start))
            calls[-1].start()
        return measure(*arguments)

    monkeypatch.setattr(type(joined.objective), "_measure", interrupted)
    try:
        assert run_worker(joined) == 4
    finally:
        calls[2].join()
        proxy.kill()
    assert states(join(folder).study) == [TrialState.COMPLETE] * 4


def test_a_call_that_a_proxy_cannot_answer_is_an_outage_too(joined, monkeypatch):
    grpc = pytest.importorskip("grpc")

    class Failing(grpc.RpcError):
        code = staticmethod(lambda: grpc.StatusCode.UNKNOWN)
        details = staticmethod(lambda: "Exception calling application: server closed")

    write, failures = type(joined.study._storage).set_trial_state_values, [Failing()]

    def failing(self, *arguments, **options):
        if failures:
            raise failures.pop()
        return write(self, *arguments, **options)

    monkeypatch.setattr("sgquant_optuna.search.workers.worker._PAUSE", 0.0)
    monkeypatch.setattr(type(joined.study._storage), "set_trial_state_values", failing)
    assert run_worker(joined) == 4
    assert states(joined.study).count(TrialState.COMPLETE) == 4


def ask_as(study, mark):
    trial = study.ask()
    trial.suggest_categorical("conv1", (1, 2, 4, 8))
    trial.suggest_categorical("conv2", (1, 2, 4, 8))
    study._storage.set_trial_system_attr(trial._trial_id, PROCESS_ATTR, [trial.number, mark])
    return trial


@pytest.mark.skipif(process_mark() is None, reason="needs /proc")
def test_the_trial_of_a_killed_process_of_this_machine_is_run_again_at_once(joined):
    *space, pid, started = process_mark().split(" ")
    dead = ask_as(joined.study, " ".join([*space, pid, str(int(started) + 1)]))
    started = time.monotonic()
    assert run_worker(joined) == 4
    assert time.monotonic() - started < 20
    trials = joined.study.trials
    assert trials[0].state == TrialState.FAIL
    assert [t.state for t in trials[1:]] == [TrialState.COMPLETE] * 4
    assert dead.params in [trial.params for trial in trials[1:]]


def test_a_trial_that_was_killed_as_it_began_is_replaced(joined, monkeypatch):
    monkeypatch.setattr("sgquant_optuna.search.workers.budget._EMPTY_TIMEOUT", 0.5)
    with monkeypatch.context() as elsewhere:  # a machine that does not sign trials at birth
        elsewhere.setattr("sgquant_optuna.storage.processes.process_mark", lambda: None)
        joined.study.ask()
    assert run_worker(joined) == 4


def test_the_last_trials_of_another_worker_are_waited_for(joined):
    other = ask_as(joined.study, process_mark())

    def finish():
        time.sleep(1.0)
        joined.objective(other)
        joined.study.tell(other, 1.0)

    thread = threading.Thread(target=finish)
    thread.start()
    assert run_worker(joined) == 3
    thread.join()
    assert states(joined.study) == [TrialState.COMPLETE] * 4


def test_a_trial_beyond_the_budget_is_not_measured(joined, monkeypatch):
    run_worker(joined, n_trials=3)
    ask, others = optuna.Study.ask, []

    def ask_after_another(study, *arguments, **options):
        if not others:  # another worker begins the last one between our look and our trial
            others.append(ask(study, *arguments, **options))
        return ask(study, *arguments, **options)

    def finish():
        time.sleep(1.0)
        joined.objective(others[0])
        joined.study.tell(others[0], 1.0)

    monkeypatch.setattr(optuna.Study, "ask", ask_after_another)
    thread = threading.Thread(target=finish)
    thread.start()
    assert run_worker(joined) == 0
    thread.join()
    assert states(joined.study) == [TrialState.COMPLETE] * 4 + [TrialState.FAIL]
    assert joined.study.trials[4].user_attrs == {SURPLUS_ATTR: True}
    assert not joined.study.trials[4].params


def test_a_complete_study_keeps_no_leftovers_of_killed_workers(joined):
    study = joined.study
    run_worker(joined)
    distributions = joined.objective.search_space.distributions
    params = joined.objective.search_space.uniform_params(4)
    for state, attrs in (
        (TrialState.WAITING, {"failed_trial": 0}),  # a copy in whose place another was measured
        (TrialState.WAITING, {}),  # enqueued by a user
    ):
        study.add_trial(
            optuna.trial.create_trial(
                state=state, params=params, distributions=distributions, system_attrs=attrs
            )
        )
    assert run_worker(joined) == 0
    assert states(study) == [TrialState.COMPLETE] * 4 + [TrialState.FAIL, TrialState.WAITING]


def test_an_enqueued_trial_of_another_program_fails_alone_with_one_line(joined, caplog):
    name = next(iter(joined.objective.search_space.distributions))
    foreign = (3, "eight", None, [1], {"a": 1}, -1)
    for value in foreign:
        joined.study.enqueue_trial({name: value})
    joined.study.enqueue_trial({name: 8, "unknown": 1})
    began = time.monotonic()
    assert run_worker(joined) == 4
    assert time.monotonic() - began < 10
    assert states(joined.study) == [TrialState.FAIL] * 6 + [TrialState.COMPLETE] * 4
    assert joined.study.trials[6].params[name] == 8
    # Optuna's lines are not shown by the command line.
    told = [record.getMessage() for record in caplog.records if "sgquant" in record.name]
    assert len(told) == 6
    assert told[1].startswith(
        f"trial 1: expected enqueued parameters of the search space, got {{'{name}': 'eight'}}"
    )
