"""What another study recommends for the first round of this one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sgquant_optuna.sampler.candidates import distinct, neighbours, random_candidates
from sgquant_optuna.sampler.problem import Problem
from sgquant_optuna.sampler.space import Floats, Index
from sgquant_optuna.sampler.surrogate import CostModels, Posterior


def recommend(
    problem: Problem,
    rng: np.random.Generator,
    *,
    size: int,
    n_sample: int,
    fixed: Mapping[str, int],
) -> list[Index]:
    """Choose configurations along the trade-off that another study's model predicts.

    The other study's limit or scale need not hold here, so its best configuration alone would
    teach little. Trade-offs carry over: the least objective for every degree of violation, from
    safe to somewhat violated, measured before or not.

    Args:
        problem:
            The other study's measurements on this grid; at least two.
        rng:
            Source of randomness.
        size:
            Configurations to choose.
        n_sample:
            Random candidates, and as many neighbours of the trade-off found among them.
        fixed:
            Positions of enqueued parameters.

    Returns:
        At most ``size`` configurations, those closest to the limit first.
    """
    space = problem.space
    models = CostModels(problem, seed=int(rng.integers(2**31)))
    pool = np.concatenate([problem.measured, random_candidates(space, rng, n_sample, fixed)])
    for _ in range(3):
        pool = distinct(pool, rng, space, fixed)
        front = _front(_criteria(models, models.posterior(pool)))
        pool = np.concatenate([pool[front], neighbours(space, rng, pool[front], n_sample // 2)])
    pool = distinct(pool, rng, space, fixed)
    criteria = _criteria(models, models.posterior(pool))
    front = _front(criteria)
    last = criteria[-1, front]
    if problem.constraints:
        usual = np.median(_criteria(models, models.posterior(problem.measured))[-1])
        front = front[last <= max(usual, last.min())]
        last = criteria[-1, front]
    order = front[np.argsort(last, kind="stable")]
    spread = np.unique(np.linspace(0, len(order) - 1, min(size, len(order))).round().astype(int))
    chosen = order[spread]
    if problem.constraints:
        chosen = chosen[np.argsort(np.abs(criteria[-1, chosen]), kind="stable")]
    return list(map(tuple, pool[chosen].tolist()))


def _criteria(models: CostModels, candidates: Posterior) -> Floats:
    """Objectives, then the largest violation if there are constraints, ``[criteria, n]``."""
    problem = models.problem
    rows = [candidates.objective(problem, j) for j in range(len(problem.signs))]
    if problem.constraints:
        means = [candidates.predictions[c.name].mean for c in problem.constraints]
        rows.append(np.max(means, axis=0))
    return np.stack(rows)


def _front(criteria: Floats) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Positions of the columns that no other column dominates, by the last criterion."""
    alive = np.lexsort(criteria)
    front: list[int] = []
    for position in alive:
        column = criteria[:, position, None]
        kept = criteria[:, front]
        if not np.any(np.all(kept <= column, axis=0)):
            front.append(int(position))
    return np.array(front, dtype=np.int64)
