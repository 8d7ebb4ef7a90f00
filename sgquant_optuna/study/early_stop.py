"""The early end of a search: it has settled, or its time was over."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import optuna
from optuna.trial import TrialState

from sgquant_optuna.storage.attributes import EARLY_STOP_ATTR, PLAN_ATTR
from sgquant_optuna.study.plan import SearchPlan
from sgquant_optuna.study.stored_values import reading, stored_mapping


@dataclass(frozen=True)
class EarlyStop:
    """The decision to end a search before all its trials, which all workers read.

    Args:
        why:
            ``"settled"``, or ``"timeout"`` of the last worker that ended.
        patience:
            Patience of the plan at that time.
        n_trials:
            Trials of the plan at that time.
        num_trials:
            Trials that the study had, in any state.
    """

    why: Literal["settled", "timeout"]
    patience: int
    n_trials: int
    num_trials: int

    @property
    def reason(self) -> str:
        """Why the search ended, to be shown."""
        if self.why == "timeout":
            return "its time was over"
        from sgquant_optuna.sampler.settled import WORTHWHILE  # the sampler imports scipy

        return (
            f"the last {self.patience} suggestions of the models promised to save less than "
            f"{WORTHWHILE:.0%} more"
        )

    @classmethod
    def load(cls, study: optuna.Study) -> EarlyStop | None:
        """Return how a study ended early, or ``None`` if it did not, or goes on since.

        Raises:
            StudyMismatchError:
                If another version of this package wrote it.
        """
        stop = cls._stored(study)
        if stop is None:
            return None
        plan = stored_mapping(study, PLAN_ATTR, what="settings") or {}
        if stop.why == "settled":
            holds = stop.answers(plan.get("patience"), plan.get("n_trials"))
        else:
            holds = stop.num_trials == len(study.get_trials(deepcopy=False))
        return stop if holds else None

    @classmethod
    def _stored(cls, study: optuna.Study) -> EarlyStop | None:
        stored = stored_mapping(study, EARLY_STOP_ATTR, what="an early end")
        if stored is None:
            return None
        with reading("an early end", study):
            stop = cls(**stored)
            numbers = (stop.patience, stop.n_trials, stop.num_trials)
            if stop.why not in ("settled", "timeout") or any(type(n) is not int for n in numbers):
                raise ValueError(f"expected 'settled' or 'timeout' and numbers, got {stored}")
            return stop

    def answers(self, patience: int | None, n_trials: int | None) -> bool:
        """Tell whether a search that has settled has with these options, too."""
        return patience == self.patience and n_trials is not None and n_trials <= self.n_trials


def end_if_settled(study: optuna.Study, plan: SearchPlan) -> bool:
    """Tell whether a search has settled; the first worker to see it records it for all.

    With another patience it is judged anew, with more trials by those that have followed.

    Args:
        study:
            Study of the search.
        plan:
            Options of the search as they are now.
    """
    from sgquant_optuna.sampler.settled import has_settled

    if not plan.patience:
        return False
    before, since = EarlyStop._stored(study), 0
    if before is not None and before.why == "settled":
        if before.answers(plan.patience, plan.n_trials):
            return True
        since = before.num_trials if before.patience == plan.patience else 0
    trials = study.get_trials(deepcopy=False)
    if not has_settled(trials[since:], plan.patience):
        return False
    _save(study, "settled", plan)
    return True


def record_timeout(study: optuna.Study, plan: SearchPlan) -> None:
    """Record that the time of a worker was over, unless the search is complete or has settled."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < plan.n_trials and not end_if_settled(study, plan):
        _save(study, "timeout", plan)


def _save(study: optuna.Study, why: Literal["settled", "timeout"], plan: SearchPlan) -> None:
    num_trials = len(study.get_trials(deepcopy=False))
    stop = EarlyStop(why, plan.patience, plan.n_trials, num_trials)
    study.set_user_attr(EARLY_STOP_ATTR, asdict(stop))
