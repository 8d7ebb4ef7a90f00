"""The default acquisition: candidates ranked by expected gain under a Gaussian process."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sgquant_optuna.sampler.acquisition import acquisition_function
from sgquant_optuna.sampler.candidates import (
    Ranking,
    anchors,
    distinct,
    neighbours,
    random_candidates,
)
from sgquant_optuna.sampler.problem import Problem
from sgquant_optuna.sampler.surrogate import CostModels, Prior

_PARENTS = 10
_SHORTLIST = 300
_KEPT = 500


def rank_by_model(
    problem: Problem,
    rng: np.random.Generator,
    *,
    n_measure: int,
    n_sample: int,
    fixed: Mapping[str, int],
    priors: Mapping[str, Prior] | None = None,
) -> Ranking:
    """Rank candidates by the expected improvement of measuring them.

    Args:
        problem:
            The measurements so far; at least one.
        rng:
            Source of randomness.
        n_measure:
            Trials in the round; twice as many are chosen jointly, because workers may overshoot.
        n_sample:
            Random candidates, and as many neighbours of the best measured configurations.
        fixed:
            Positions of enqueued parameters.
        priors:
            Predictions of other studies' models by target name.

    Returns:
        Candidates that were not measured yet, best first.
    """
    models = CostModels(problem, seed=int(rng.integers(2**31)), priors=priors)
    measured = models.posterior(problem.measured)
    acquisition = acquisition_function(models, measured)
    space = problem.space

    parents = problem.measured[acquisition.best_measured()[:_PARENTS]]
    pool = np.concatenate(
        [
            random_candidates(space, rng, n_sample, fixed),
            neighbours(space, rng, parents, n_sample),
            anchors(space),
        ]
    )
    pool = space.without(distinct(pool, rng, space, fixed), problem.measured)
    if not len(pool):
        return Ranking([])
    candidates = models.posterior(acquisition.promising(pool))
    # Once more around the best: on a grid this stands in for a gradient.
    order = np.argsort(-acquisition.score(candidates), kind="stable")
    near = neighbours(space, rng, candidates.indices[order[:20]], n_sample // 2)
    kept = np.concatenate([candidates.indices[order[:_KEPT]], near])
    pool = space.without(distinct(kept, rng, space, fixed), problem.measured)
    candidates = models.posterior(acquisition.promising(pool))

    order = np.argsort(-acquisition.score(candidates), kind="stable")
    candidates = candidates.subset(order[: max(_KEPT, 4 * n_measure)])
    shortlist = candidates.subset(np.arange(min(_SHORTLIST, len(candidates.indices))))
    chosen = acquisition.batch(shortlist, 2 * n_measure, rng)
    rest = np.setdiff1d(np.arange(len(candidates.indices)), chosen).tolist()
    candidates = candidates.subset(np.array(chosen + rest))
    return Ranking(list(map(tuple, candidates.indices.tolist())), models.in_units(candidates))
