from datetime import UTC, datetime, timedelta

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState, create_trial

from sgquant_optuna.storage import heartbeats_from_creation, open_storage
from sgquant_optuna.storage.attributes import BEAT_ATTR
from sgquant_optuna.study.rows import row_of, silent_seconds, trial_rows
from sgquant_optuna.study.status import StudyState, study_status
from sgquant_optuna.study.trial_result import TrialResult, TrialScore
from tests.databases import BACKENDS, Proxy, fresh_database
from tests.hand_made import measured, new_study

# A trial that is asked for by hand stands for one that a worker runs.
pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed")
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture(params=["memory", *BACKENDS])
def storage(request, tmp_path):
    if request.param == "memory":
        yield optuna.storages.InMemoryStorage()
        return
    with fresh_database(request.param, tmp_path) as url:
        yield open_storage(url)


def ended(minutes_ago: float) -> datetime:
    return (NOW - timedelta(minutes=minutes_ago)).astimezone().replace(tzinfo=None)


def test_a_study_is_told_by_hand_computed_numbers(storage):
    study = new_study(storage, planned=10)
    # Trials of 60 s: the first began 121 minutes ago, three ended in the last hour.
    for minutes, worker in ((120, "a:1"), (90, "a:1"), (30, "b:2"), (20, "a:1"), (10, "b:2")):
        study.add_trial(
            measured((8, 8, 8, 8), 0.0, ended=ended(minutes), seconds=60, worker=worker)
        )
    study.add_trial(create_trial(state=TrialState.FAIL))
    study.enqueue_trial({})
    study.enqueue_trial({})
    asked = study.ask()
    asked.set_user_attr("worker", "c:3")
    status = study_status(study, now=NOW)
    assert (status.planned, status.finished, status.running, status.stale) == (10, 5, 1, 0)
    assert (status.failed, status.waiting) == (1, 1)
    assert status.state is StudyState.RUNNING
    assert status.per_hour_lately == pytest.approx(3.0)
    assert status.per_hour == pytest.approx(5 / (121 / 60))
    assert status.seconds_left == pytest.approx(5 / 3 * 3600)
    assert [(w.name, w.finished, w.running) for w in status.workers] == [
        ("a:1", 3, 0),
        ("b:2", 2, 0),
        ("(unnamed)", 0, 0),
        ("c:3", 0, 1),
    ]
    assert status.workers[0].last_seen == NOW - timedelta(minutes=20)


def test_a_study_that_began_lately_is_judged_by_the_time_it_ran():
    study = new_study(planned=10)
    for minutes in (10, 5):
        study.add_trial(measured((8, 8, 8, 8), 0.0, ended=ended(minutes), seconds=60 * 5))
    study.ask()
    assert study_status(study, now=NOW).per_hour_lately == pytest.approx(2 / (15 / 60))


def test_a_stopped_study_has_no_time_left_and_its_speed_ends_with_it():
    study = new_study(planned=10)
    for minutes in (1500, 1440):
        study.add_trial(measured((8, 8, 8, 8), 0.0, ended=ended(minutes), seconds=3600))
    status = study_status(study, now=NOW)
    assert status.state is StudyState.STOPPED
    assert status.seconds_left is None
    assert status.per_hour_lately == 0.0
    assert status.per_hour == pytest.approx(1.0)


def test_states_of_a_study():
    assert study_status(new_study()).state is StudyState.NEW
    study = new_study(planned=1)
    study.add_trial(measured((8, 8, 8, 8), 0.0))
    assert study_status(study).state is StudyState.DONE


def test_the_best_saving_is_of_a_feasible_trial():
    study = new_study()
    study.add_trial(measured((1, 1, 1, 1), 7.0))
    assert study_status(study).best_saving is None
    study.add_trial(measured((8, 8, 8, 8), 0.5))
    expected = study.trials[1].user_attrs["saving"]
    assert study_status(study).best_saving == pytest.approx(expected)
    assert study_status(study).best_drop == 0.5


def test_any_study_has_a_status():
    study = optuna.create_study()
    study.optimize(lambda trial: trial.suggest_int("x", 0, 9), n_trials=3)
    status = study_status(study)
    assert (status.finished, status.planned, status.best_saving) == (3, None, None)


def test_a_silent_trial_is_stale(tmp_path):
    storage = open_storage(tmp_path / "s.db")
    study = new_study(storage, planned=3)
    silent, alive, unheard = study.ask(), study.ask(), study.ask()
    for trial in (silent, alive):
        storage.record_heartbeat(trial._trial_id)
    with storage.engine.begin() as connection:
        connection.execute(
            sa.text(
                "UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-301 seconds') "
                "WHERE trial_id = :id"
            ),
            {"id": silent._trial_id},
        )
    seconds = silent_seconds(study)
    assert seconds[silent._trial_id] == pytest.approx(301, abs=5)
    assert seconds[alive._trial_id] < 5
    assert unheard._trial_id not in seconds
    status = study_status(study)
    assert (status.running, status.stale) == (2, 1)


@pytest.mark.parametrize("kind", ["journal", "grpc"])
def test_a_silent_trial_is_stale_through_a_proxy_and_in_a_journal(kind, tmp_path):
    url, proxy = f"journal:///{tmp_path}/study.log", None
    if kind == "grpc":
        pytest.importorskip("grpc")
        proxy = Proxy(tmp_path / "s.db")
        proxy.start()
        url = proxy.url
    try:
        storage = open_storage(url)
        study = new_study(storage, planned=3)
        silent, alive, unheard = study.ask(), study.ask(), study.ask()
        storage.record_heartbeat(alive._trial_id)
        with heartbeats_from_creation():
            storage.create_new_trial(study._study_id)
        before = (datetime.now(UTC) - timedelta(seconds=301)).isoformat(timespec="seconds")
        storage.set_trial_system_attr(silent._trial_id, BEAT_ATTR, f"0123abcd {before}")
        # As `sgquant status` does: a process that looks once.
        looking = optuna.load_study(study_name=study.study_name, storage=open_storage(url))
        seconds = silent_seconds(looking)
        assert seconds[silent._trial_id] == pytest.approx(301, abs=10)
        assert seconds[alive._trial_id] < 10
        assert unheard._trial_id not in seconds
        status = study_status(looking)
        assert (status.running, status.stale) == (3, 1)
    finally:
        if proxy is not None:
            proxy.kill()


def test_rows_of_a_database_are_those_that_optuna_tells(storage):
    study = new_study(storage)
    study.add_trial(measured((1, 2, 4, 8), 0.25, worker='a "b" :c'))
    study.enqueue_trial({})
    rows = trial_rows(study, TrialResult, ["worker", "nothing"])
    assert rows[0].extras == {"worker": 'a "b" :c'} and rows[1].extras == {}
    assert rows[0].result is not None and rows[1].result is None
    for row, trial in zip(rows, study.trials, strict=True):
        assert (row.trial_id, row.number, row.state) == (
            trial._trial_id,
            trial.number,
            trial.state,
        )
        assert row.result == row_of(trial, TrialResult).result
        for mine, theirs in (
            (row.started, trial.datetime_start),
            (row.finished, trial.datetime_complete),
        ):
            if theirs is None:
                assert mine is None
            else:  # MySQL keeps whole seconds
                assert abs((mine - theirs.astimezone(UTC)).total_seconds()) <= 1


def test_two_studies_of_one_storage_do_not_mix(storage):
    one, two = new_study(storage, name="one"), new_study(storage, name="two")
    one.add_trial(measured((1, 1, 1, 1), 0.0))
    assert len(trial_rows(one, TrialScore)) == 1
    assert trial_rows(two, TrialScore) == []
