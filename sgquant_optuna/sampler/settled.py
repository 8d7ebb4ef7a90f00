"""The end of a search: the models expect no gain that is worth another trial."""

from __future__ import annotations

from collections.abc import Iterable

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from sgquant_optuna.sampler.claims import GAIN, prediction_of

WORTHWHILE = 0.01
"""Expected improvement of a trial, as a share of the best known value, that is worth measuring."""


def has_settled(trials: Iterable[FrozenTrial], patience: int) -> bool:
    """Tell whether the last trials that the models chose promised nothing worthwhile.

    The sampler records the expected gain where the one objective is known and a feasible
    configuration was measured; other studies never settle.

    Args:
        trials:
            Trials of a study.
        patience:
            Number of complete trials with an expected gain that have to promise less than 1 %;
            the last ones by their numbers.
    """
    gains = {
        trial.number: prediction_of(trial.user_attrs)[GAIN]
        for trial in trials
        if trial.state == TrialState.COMPLETE and GAIN in prediction_of(trial.user_attrs)
    }
    last = [gains[number] for number in sorted(gains)[-patience:]]
    return len(last) == patience and max(last) < WORTHWHILE


class StopWhenSettled:
    """A callback of ``study.optimize`` that ends it when the models expect no more gain.

    Each worker that optimizes needs a callback of its own. A study that goes on is judged by
    trials that it has finished since.

    Args:
        patience:
            Number of trials in a row, of those that the models chose, whose expected improvement
            is less than 1 % of the best known value.

    Raises:
        ValueError:
            If the patience is less than 1.

    Example:
        ::

            study.optimize(objective, n_trials=100, callbacks=[StopWhenSettled(patience=10)])
    """

    def __init__(self, patience: int) -> None:
        """Check the patience."""
        if patience < 1:
            raise ValueError(f"patience: expected at least 1, got {patience}")
        self._patience = patience

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Stop the study if it has settled."""
        if has_settled(study.get_trials(deepcopy=False), self._patience):
            study.stop()
