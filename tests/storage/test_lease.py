import threading
import time

import optuna
import pytest

from sgquant_optuna.storage import open_storage
from sgquant_optuna.storage.lease import LeaseTimes, exclusive

QUICK = LeaseTimes(settle=0.1, heartbeat=0.05, timeout=0.4, poll=0.02)


@pytest.fixture
def study(tmp_path):
    return optuna.create_study(storage=open_storage(tmp_path / "s.db"))


def test_one_of_many_does_the_task_and_the_others_wait_until_it_is_done(study):
    done, doers, results = threading.Event(), [], []

    def work():
        with exclusive(study, "task", unless=done.is_set, times=QUICK) as mine:
            results.append(mine)
            if mine:
                doers.append(1)
                time.sleep(0.6)  # longer than the timeout: its heartbeats keep it
                done.set()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(doers) == 1
    assert sorted(results) == [False, False, False, True]


def test_a_holder_that_was_killed_is_replaced(study):
    study._storage.set_study_system_attr(
        study._study_id, "sgquant:lease:task", {"by": "host:1 dead", "beat": 3}
    )
    started = time.monotonic()
    with exclusive(study, "task", unless=lambda: False, times=QUICK) as mine:
        assert mine
    assert time.monotonic() - started > 0.4


def test_it_is_free_again_after_an_error_and_other_tasks_do_not_wait(study):
    with pytest.raises(KeyError):
        with exclusive(study, "task", unless=lambda: False, times=QUICK):
            with exclusive(study, "other", unless=lambda: False, times=QUICK) as mine:
                assert mine
            raise KeyError
    started = time.monotonic()
    with exclusive(study, "task", unless=lambda: False, times=QUICK) as mine:
        assert mine
    assert time.monotonic() - started < 0.4


def test_what_is_done_is_not_waited_for(study):
    with exclusive(study, "task", unless=lambda: True, times=QUICK) as mine:
        assert not mine
