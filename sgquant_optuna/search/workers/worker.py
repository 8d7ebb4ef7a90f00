"""One process that measures trials of a study until its budget is used up."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from sgquant_optuna.exceptions import SgquantError, WorkerError
from sgquant_optuna.search.preparation import PreparedSearch
from sgquant_optuna.search.workers.budget import (
    Callback,
    Values,
    optimize_within_budget,
    release_own,
)
from sgquant_optuna.search.workers.stopping import Stopper
from sgquant_optuna.storage import outage
from sgquant_optuna.study.deletion import raise_if_deleted, telling_deletion
from sgquant_optuna.study.early_stop import end_if_settled, record_timeout
from sgquant_optuna.study.plan import SearchPlan

_MAX_FAILURES = 3
_PAUSE = 1.0  # seconds after the first failure
_MAX_PAUSE = 30.0
_OUTAGE_TRIES = 12

_logger = logging.getLogger(__name__)


def run_worker(
    prepared: PreparedSearch,
    *,
    n_trials: int | None = None,
    timeout: float | None = None,
    stopper: Stopper | None = None,
    callbacks: Iterable[Callback] = (),
) -> int:
    """Measure trials until the study has the number that its plan asks for, or has settled.

    A trial that a signal interrupts goes back to the study as waiting, with the configuration
    that it claimed, and any worker runs it again. A trial that fails is recorded as such and
    replaced by another.

    Args:
        prepared:
            Study and its objective.
        n_trials:
            Largest number of trials of this worker.
        timeout:
            Seconds after which this worker begins no further trial; those of the plan by default.
        stopper:
            Signals that end the worker; the caller installs it.
        callbacks:
            Functions that are called with study and trial after each trial of this worker.

    Returns:
        How many trials this worker finished.

    Raises:
        Stopped:
            If a signal interrupted a trial or the wait for the last ones.
        StudyDeletedError:
            If the study was deleted meanwhile.
        StudyMismatchError:
            If the study is not of this objective.
        WorkerError:
            If trials failed three times in a row, or the database stays away for some four
            minutes; its cause is the last error.
    """
    study = prepared.study
    seconds = prepared.plan.timeout if timeout is None else timeout
    deadline = time.monotonic() + (math.inf if seconds is None else seconds)
    finished = measure_trials(
        study,
        prepared.objective,
        lambda: SearchPlan.load(study).n_trials,
        own_limit=n_trials,
        deadline=deadline,
        is_settled=lambda: end_if_settled(study, SearchPlan.load(study)),
        stopper=stopper,
        callbacks=callbacks,
    )
    if time.monotonic() >= deadline:
        with telling_deletion(study):
            record_timeout(study, SearchPlan.load(study))
    return finished


def measure_trials(
    study: optuna.Study,
    objective: Callable[[Trial], Values],
    n_trials: Callable[[], int],
    *,
    own_limit: int | None = None,
    deadline: float = math.inf,
    is_settled: Callable[[], bool] = lambda: False,
    stopper: Stopper | None = None,
    callbacks: Iterable[Callback] = (),
) -> int:
    """Measure trials as :func:`run_worker` does, with any objective.

    Args:
        study:
            Study with its sampler.
        objective:
            Function that measures a trial.
        n_trials:
            Function that returns the trials of the study, of all its workers.
        own_limit:
            Largest number of trials of this worker.
        deadline:
            Time of ``time.monotonic()`` after which this worker begins no further trial.
        is_settled:
            Function that returns whether the study needs no further trial.
        stopper:
            Signals that end the worker; the caller installs it.
        callbacks:
            Functions that are called with study and trial after each trial of this worker.
    """
    tally, stopper = _Tally(own_limit), stopper or Stopper(0.0)
    while True:
        try:
            optimize_within_budget(
                study,
                objective,
                n_trials,
                stopper=stopper,
                is_done=lambda: tally.is_full or time.monotonic() >= deadline,
                is_settled=is_settled,
                callbacks=[tally, *callbacks],
            )
        except Exception as error:
            raise_if_deleted(study, error)
            if isinstance(error, SgquantError):
                raise  # another try would end the same
            if outage(error) is not None:
                _wait_for(study, error, tally)
                continue
            tally.failures, tally.outages = tally.failures + 1, 0
            _logger.info("the traceback of the trial that failed:", exc_info=error)
            said = f"{type(error).__name__}: {error}"
            if tally.failures >= _MAX_FAILURES:
                raise WorkerError(
                    f"{tally.failures} trials failed in a row, the last by {said}"
                ) from error
            _logger.warning("a trial failed (%s); going on with another", said)
            time.sleep(_PAUSE * tally.failures)
        else:
            return tally.finished


def _wait_for(study: optuna.Study, error: Exception, tally: _Tally) -> None:
    """Wait until the database answers again, and give back the trial that it cut off.

    It may answer and yet refuse to write, as on a full disk. So the pauses grow until a trial
    succeeds, not just until something is read.

    Raises:
        WorkerError:
            If the database stays away for some four minutes.
    """
    while True:
        tally.outages += 1
        if tally.outages > _OUTAGE_TRIES:
            raise WorkerError(f"the database stays away ({outage(error)})") from error
        pause = min(_PAUSE * 2 ** (tally.outages - 1), _MAX_PAUSE)
        _logger.warning(
            "the database does not answer (%s); next try in %g s", outage(error), pause
        )
        time.sleep(pause)
        try:
            release_own(study)
        except Exception as again:
            raise_if_deleted(study, again)
            if outage(again) is None:
                raise
            error = again
        else:
            return


@dataclass
class _Tally:
    """An Optuna callback that counts the trials of this worker."""

    limit: int | None
    finished: int = 0
    failures: int = 0
    outages: int = 0

    @property
    def is_full(self) -> bool:
        return self.limit is not None and self.finished >= self.limit

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        if trial.state == TrialState.COMPLETE:
            self.finished, self.failures, self.outages = self.finished + 1, 0, 0
