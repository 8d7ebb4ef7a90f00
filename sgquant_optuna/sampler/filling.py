"""Candidates of a known constraint that the cost model makes and chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from sgquant_optuna.sampler.candidates import distinct
from sgquant_optuna.sampler.known_constraint import KnownConstraint
from sgquant_optuna.sampler.space import Floats, Indices
from sgquant_optuna.sampler.surrogate import CostModels, Posterior

_MAX_PREDICTIONS = 20_000
_MAX_STARTS = 8
_EMPTIED = 0.5  # share of the parameters of a start that are lowered before it is filled


def near_or_better(models: CostModels, candidates: Posterior, measured: Posterior) -> Posterior:
    """Drop candidates that leave a budget unused, unless they may well be better.

    That is where an objective, less its deviation, is below the expectation of every configuration
    which uses the budget up, measured or not. A candidate of which a parameter can be raised is
    taken to be no better than with it raised.

    Args:
        models:
            Cost models of the round.
        candidates:
            Posterior of the candidates, at least one.
        measured:
            Posterior of the measured configurations.
    """
    problem = models.problem
    constraint = problem.known_constraint
    if constraint is None or constraint.slack is None:
        return candidates
    every = np.concatenate([candidates.indices, measured.indices])
    near = constraint.uses_it_up(every)
    kept = near[: len(candidates.indices)]
    if not kept.any():  # those at the limit are all measured
        kept = constraint.uses_it_up(candidates.indices)
    full = constraint.is_full(candidates.indices)
    for j in range(len(problem.signs)):
        mean = candidates.objective(problem, j)
        means = np.concatenate([mean, measured.objective(problem, j)])
        if j != problem.known_objective:
            mean = mean - candidates.predictions[f"objective {j}"].deviation
        kept = kept | (full & (mean < means[near].min(initial=np.inf)))
    return candidates.subset(np.flatnonzero(kept))


def filled_by_model(
    models: CostModels,
    starts: Indices,
    rng: np.random.Generator,
    fixed: Mapping[str, int],
) -> Indices:
    """Fill a budget greedily: raise what the model predicts to gain most for what it takes.

    Args:
        models:
            Cost models of the round.
        starts:
            Good configurations, best first, ``[n, parameters]``. About half of the parameters of
            each are lowered first; the configuration that takes least is a further start.
        rng:
            Source of randomness.
        fixed:
            Positions of enqueued parameters, which stay.

    Returns:
        Configurations where no parameter can be raised any more, ``[m, parameters]``; none
        without a budget or without an objective to predict.
    """
    problem, space = models.problem, models.problem.space
    constraint = problem.known_constraint
    target = next((t.name for t in problem.objectives if t is not None), None)
    if constraint is None or constraint.slack is None or target is None:
        return starts[:0]
    raises = int((space.cardinalities - 1).sum())
    count = int(np.clip(_MAX_PREDICTIONS // max(raises**2, 1), 1, _MAX_STARTS))
    least = constraint.least(fixed)
    emptied = starts[: count - 1]
    emptied = np.where(rng.random(emptied.shape) < _EMPTIED, least, emptied)
    starts = distinct(np.concatenate([least[None], emptied]), rng, space, fixed)
    rows = constraint.within(starts, rng, fixed)
    surrogate = models.surrogates[target]

    def predict(indices: Indices) -> Floats:
        return surrogate.predict(space.features(indices)).mean

    free = np.flatnonzero([name not in fixed for name in space.names])
    return np.stack([raised(row, predict, constraint, free) for row in rows])


def raised(
    row: Indices,
    predict: Callable[[Indices], Floats],
    constraint: KnownConstraint,
    free: Indices,
) -> Indices:
    """Raise one parameter after the other until nothing fits.

    Args:
        row:
            Configuration within the constraint, ``[parameters]``.
        predict:
            Function that predicts the objective of configurations; lower is better.
        constraint:
            Constraint to fill up.
        free:
            Parameters that may be raised.

    Returns:
        The configuration, ``[parameters]``.
    """
    cardinalities = constraint.space.cardinalities
    while True:
        tried = np.concatenate([_others(row, column, cardinalities) for column in free])
        used = constraint.values(np.concatenate([row[None], tried]))
        fits = np.flatnonzero((used[1:] <= 0) & (used[1:] > used[0]))
        if not len(fits):
            return row
        tried = tried[fits]
        means = predict(np.concatenate([row[None], tried]))
        row = tried[np.argmax((means[0] - means[1:]) / (used[1:][fits] - used[0]))]


def _others(row: Indices, column: int, cardinalities: Indices) -> Indices:
    """Return a configuration with every other value of one parameter."""
    positions = np.setdiff1d(np.arange(cardinalities[column]), row[column])
    changed = np.repeat(row[None], len(positions), axis=0)
    changed[:, column] = positions
    return changed
