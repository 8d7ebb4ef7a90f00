from dataclasses import asdict, replace

import optuna
import pytest
from optuna.trial import create_trial

from sgquant_optuna.exceptions import StudyMismatchError
from sgquant_optuna.study.early_stop import EarlyStop, end_if_settled, record_timeout
from sgquant_optuna.study.plan import SearchPlan
from sgquant_optuna.study.status import StudyState, study_status

PLAN = SearchPlan(n_trials=20, patience=3)


def add(study, *gains):
    for gain in gains:
        study.add_trial(create_trial(value=1.0, user_attrs={"predicted": {"gain": gain}}))


@pytest.fixture
def study():
    study = optuna.create_study()
    PLAN.save(study)
    add(study, 0.3, 0.001, 0.002)
    return study


def test_a_search_settles_once_and_all_its_workers_read_it(study):
    assert not end_if_settled(study, PLAN)
    add(study, 0.0)
    assert end_if_settled(study, PLAN)
    add(study, 0.5)  # another worker was in the middle of it
    assert end_if_settled(study, PLAN)
    assert EarlyStop.load(study) == EarlyStop("settled", 3, 20, 4)


def test_without_patience_it_never_does(study):
    add(study, *[0.0] * 10)
    assert not end_if_settled(study, replace(PLAN, patience=0))


def test_more_trials_go_on_until_those_have_settled_too(study):
    add(study, 0.0)
    assert end_if_settled(study, PLAN)
    more = replace(PLAN, n_trials=30)
    more.save(study)
    assert EarlyStop.load(study) is None
    assert not end_if_settled(study, more)
    add(study, 0.0, 0.0)
    assert not end_if_settled(study, more)
    add(study, 0.0)
    assert end_if_settled(study, more)


def test_another_patience_is_judged_anew(study):
    add(study, 0.0)
    assert end_if_settled(study, PLAN)
    assert not end_if_settled(study, replace(PLAN, patience=4))
    assert end_if_settled(study, replace(PLAN, patience=2))


def test_the_status_says_why_a_search_ended(study):
    assert study_status(study).ended_early is None
    add(study, 0.0)
    end_if_settled(study, PLAN)
    status = study_status(study)
    assert status.state is StudyState.DONE
    assert status.ended_early.reason == (
        "the last 3 suggestions of the models promised to save less than 1% more"
    )
    replace(PLAN, patience=0).save(study)
    assert study_status(study).state is StudyState.STOPPED


def test_a_timeout_is_told_until_the_search_goes_on(study):
    record_timeout(study, PLAN)
    status = study_status(study)
    assert (status.state, status.ended_early.reason) == (StudyState.STOPPED, "its time was over")
    add(study, 0.4)
    assert study_status(study).ended_early is None


def test_a_search_that_has_settled_or_is_complete_has_no_timeout(study):
    record_timeout(study, replace(PLAN, n_trials=3))
    assert EarlyStop.load(study) is None
    add(study, 0.0)
    record_timeout(study, PLAN)
    assert EarlyStop.load(study).why == "settled"


def test_an_early_end_of_another_version_is_refused(study):
    stored = asdict(EarlyStop("settled", 3, 20, 4))
    study.set_user_attr("sgquant:early-stop", {**stored, "novelty": 1})
    with pytest.raises(StudyMismatchError, match="expected an early end of this version"):
        EarlyStop.load(study)
