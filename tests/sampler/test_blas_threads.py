"""Linear algebra on one thread: while a round is ranked, and never after it."""

import optuna
import pytest
from threadpoolctl import ThreadpoolController

from sgquant_optuna.sampler import sampler
from sgquant_optuna.sampler.blas_threads import one_blas_thread
from tests.sampler.toy_study import new_sampler, objective


def numbers():
    libraries = ThreadpoolController().select(user_api="blas").info()
    return {library["num_threads"] for library in libraries}


@pytest.fixture(autouse=True)
def three_threads():
    with ThreadpoolController().limit(limits=3, user_api="blas"):
        yield


def test_blas_has_its_own_number_of_threads_after_an_interruption():
    with pytest.raises(KeyboardInterrupt), one_blas_thread():
        assert numbers() == {1}
        raise KeyboardInterrupt
    assert numbers() == {3}


def test_a_round_is_ranked_on_one_thread(monkeypatch):
    seen, rank = set(), sampler.rank_candidates

    def watched(*arguments, **options):
        seen.update(numbers())
        return rank(*arguments, **options)

    monkeypatch.setattr(sampler, "rank_candidates", watched)
    study = optuna.create_study(sampler=new_sampler())
    study.optimize(objective, n_trials=4)
    assert seen == {1} and numbers() == {3}


def test_threads_that_ask_at_once_leave_the_number_as_it_was():
    study = optuna.create_study(sampler=new_sampler())
    study.optimize(objective, n_trials=6, n_jobs=3)
    assert numbers() == {3}
