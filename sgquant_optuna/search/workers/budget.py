"""An exact number of trials for a study, shared by all its workers without a lock."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Sequence

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState

from sgquant_optuna.exceptions import EnqueuedTrialError
from sgquant_optuna.search.workers.stopping import Stopped, Stopper
from sgquant_optuna.storage import heartbeats_from_creation
from sgquant_optuna.storage.attributes import COPY_OF_ATTR, CREATION_ATTRS, SURPLUS_ATTR
from sgquant_optuna.storage.heartbeat import MAX_RETRIES
from sgquant_optuna.storage.processes import (
    is_signed_here,
    is_signer_gone,
    sign,
    unsign,
)

Values = float | Sequence[float]
Callback = Callable[[optuna.Study, FrozenTrial], None]

_logger = logging.getLogger(__name__)
_LIVE = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
_POLL = 0.5  # seconds between two looks while other workers run the last trials
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ExperimentalWarning)
    _retry = RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES)
_EMPTY_TIMEOUT = 30.0  # seconds; a trial that begins is empty for some milliseconds


class _SurplusError(Exception):
    """A trial that was begun when the budget was given out already."""


_DROPPED = (_SurplusError, EnqueuedTrialError)  # such a trial fails, and the worker goes on


def optimize_within_budget(
    study: optuna.Study,
    objective: Callable[[Trial], Values],
    n_trials: Callable[[], int],
    *,
    stopper: Stopper | None = None,
    is_done: Callable[[], bool] = lambda: False,
    is_settled: Callable[[], bool] = lambda: False,
    callbacks: Iterable[Callback] = (),
) -> None:
    """Run trials until the study has its budget of complete ones, whoever ran them.

    Trials are numbered by the storage, one by one. A trial counts against the budget by how many
    living trials (complete, running or waiting) have a lower number, so of two workers that begin
    the last one together, the later one gives up before it measures anything. A worker that finds
    the budget given out waits until all is complete, for the trials of killed workers come back.

    Args:
        study:
            Study with its sampler.
        objective:
            Function that measures a trial.
        n_trials:
            Function that returns the budget; called before each trial, because it may grow.
        stopper:
            Signals that end the worker; none by default. A trial that they interrupt is released.
        is_done:
            Function that returns whether this worker has measured enough.
        is_settled:
            Function that returns whether the study needs no further trial, the same for all its
            workers. Trials that wait are measured before.
        callbacks:
            Functions that are called with study and trial after each trial of this worker.

    Raises:
        Stopped:
            If a signal interrupted a trial.
        Exception:
            Whatever the objective raises.
    """
    stopper = stopper or Stopper(grace=0.0)

    def measure(trial: Trial) -> Values:
        sign(trial)
        trials = study.get_trials(deepcopy=False, states=_LIVE)
        if sum(other.number < trial.number for other in trials) >= n_trials():
            trial.set_user_attr(SURPLUS_ATTR, True)
            raise _SurplusError
        try:
            with stopper.trial():
                return objective(trial)
        except Stopped:
            release(study, trial)
            raise
        except EnqueuedTrialError as error:
            _logger.warning("trial %d: %s", trial.number, error)
            raise

    notes = [_without_surplus(callback) for callback in callbacks]
    empty: dict[int, float] = {}
    while not (stopper.requested or is_done()):
        counts = {state: 0 for state in _LIVE}
        for trial in study.get_trials(deepcopy=False, states=_LIVE):
            counts[trial.state] += 1
        budget = n_trials()
        if counts[TrialState.COMPLETE] >= budget:
            clear_leftovers(study)
            return
        if not counts[TrialState.WAITING] and is_settled():
            clear_leftovers(study)
            return
        if not counts[TrialState.WAITING] and sum(counts.values()) >= budget:
            optuna.storages.fail_stale_trials(study)
            take_over(study, empty)
            time.sleep(_POLL)
            continue
        try:
            with heartbeats_from_creation():  # killed before the first, it would run for ever
                study.optimize(measure, n_trials=1, catch=_DROPPED, callbacks=notes)
        except (UpdateFinishedTrialError, ValueError, AssertionError) as error:
            if not _says_stale(error):
                raise
            # Another worker took us for dead and has put the trial back.
            _logger.warning("a trial was declared stale while it ran; its result is dropped")


def _says_stale(error: BaseException | None) -> bool:
    """Tell whether Optuna refused a result because the trial is over, in one of its three ways."""
    if isinstance(error, UpdateFinishedTrialError):
        return True
    if isinstance(error, AssertionError):  # of its log, while the refusal was on its way up
        return str(error) == "Should not reach." and _says_stale(error.__context__)
    return isinstance(error, ValueError) and "Cannot tell a" in str(error)


def take_over(study: optuna.Study, empty: dict[int, float]) -> None:
    """Put back what killed workers ran and the heartbeat does not tell, or not yet.

    Args:
        study:
            Study whose running trials are checked.
        empty:
            Times at which trials that hold nothing at all were first seen, by trial; kept from
            call to call. Their workers were killed as they began, before the first heartbeat.
    """
    now = time.monotonic()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        chosen = set(trial.system_attrs) - CREATION_ATTRS
        gone = is_signer_gone(trial)
        if gone is None:
            holds_nothing = not (trial.params or trial.user_attrs or chosen)
            gone = holds_nothing and now - empty.setdefault(trial._trial_id, now) > _EMPTY_TIMEOUT
        if not gone:
            continue
        if not _fail(study, trial):  # of several workers that see it, one queues its copy
            continue
        _logger.warning("trial %d: its process is gone", trial.number)
        if chosen:  # else there is no configuration to repeat
            _retry(study, study._storage.get_trial(trial._trial_id))


def clear_leftovers(study: optuna.Study) -> None:
    """Fail what a study with all its trials has no use for, so that nothing seems to run still.

    Those are copies of stale trials in whose place others were measured (between the failure of a
    trial and its copy, the budget has room for another), and trials of killed workers. Trials that
    a user enqueued or a worker gave back stay.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING)):
        is_copy = trial.state == TrialState.WAITING and COPY_OF_ATTR in trial.system_attrs
        is_orphan = trial.state == TrialState.RUNNING and is_signer_gone(trial)
        if is_copy or is_orphan:
            _fail(study, trial)


def _fail(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Fail a trial; return whether this call did, and not another worker before it."""
    try:
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False
    return True


def release(study: optuna.Study, trial: Trial | FrozenTrial) -> None:
    """Give a running trial of this process back, so that any worker runs the same again."""
    try:
        unsign(study._storage, trial)
        study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    except UpdateFinishedTrialError:  # declared stale before, so it was put back already
        return
    _logger.warning("trial %d: released, any worker may run it again", trial.number)


def release_own(study: optuna.Study) -> None:
    """Give back what this process, which runs no trial now, left running in the database."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if is_signed_here(trial):
            release(study, trial)


def _without_surplus(callback: Callback) -> Callback:
    def call(study: optuna.Study, trial: FrozenTrial) -> None:
        if SURPLUS_ATTR not in trial.user_attrs:
            callback(study, trial)

    return call
