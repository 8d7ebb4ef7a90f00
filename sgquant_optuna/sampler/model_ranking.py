"""The default acquisition: candidates ranked by expected gain under a Gaussian process."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sgquant_optuna.sampler.beliefs import Beliefs
from sgquant_optuna.sampler.candidates import (
    Ranking,
    anchors,
    distinct,
    neighbours,
    random_candidates,
)
from sgquant_optuna.sampler.gains import gain_over
from sgquant_optuna.sampler.problem import Problem
from sgquant_optuna.sampler.surrogate import Prior

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
    """Rank candidates by what measuring them is expected to gain.

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
    beliefs = Beliefs(problem, seed=int(rng.integers(2**31)), priors=priors)
    measured = beliefs.view(problem.measured)
    gain = gain_over(beliefs, measured)
    space = problem.space

    parents = problem.measured[gain.best_measured()[:_PARENTS]]
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
    view = beliefs.view(gain.promising(pool))
    # Once more around the best: on a grid this stands in for a gradient.
    order = np.argsort(-gain.score(view), kind="stable")
    near = neighbours(space, rng, view.indices[order[:20]], n_sample // 2)
    kept = np.concatenate([view.indices[order[:_KEPT]], near])
    pool = space.without(distinct(kept, rng, space, fixed), problem.measured)
    view = beliefs.view(gain.promising(pool))

    order = np.argsort(-gain.score(view), kind="stable")
    view = view.part(order[: max(_KEPT, 4 * n_measure)])
    shortlist = view.part(np.arange(min(_SHORTLIST, len(view.indices))))
    chosen = gain.batch(shortlist, 2 * n_measure, rng)
    rest = np.setdiff1d(np.arange(len(view.indices)), chosen).tolist()
    view = view.part(np.array(chosen + rest))
    return Ranking(list(map(tuple, view.indices.tolist())), beliefs.notes(view))
