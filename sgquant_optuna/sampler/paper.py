"""The paper's five steps, exactly: predict every random candidate and measure the best N_mea.

Step 1, the random round, and step 5, the repetition, are those of every acquisition.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sgquant_optuna.sampler.boosted_trees import BoostedTrees
from sgquant_optuna.sampler.candidates import Ranking, random_candidates
from sgquant_optuna.sampler.problem import Problem
from sgquant_optuna.sampler.space import Floats


def rank_as_paper(
    problem: Problem, rng: np.random.Generator, n_sample: int, fixed: Mapping[str, int]
) -> Ranking:
    """Rank random candidates by what boosted trees predict, greedily.

    Those predicted to be feasible come first, in order of their predicted or known objective; the
    others follow in order of their violation. With several objectives, the number of candidates
    that dominate a candidate takes the place of its objective.

    Args:
        problem:
            Measurements so far.
        rng:
            Source of randomness.
        n_sample:
            Number of candidates to draw (the paper's N_sample).
        fixed:
            Positions of enqueued parameters.

    Returns:
        All candidates, best first.

    Reference:
        SGQuant, "Auto-bit Selection", steps 2 to 4.
    """
    # Step 3 comes before step 2 here; neither depends on the other.
    pool = random_candidates(problem.space, rng, n_sample, fixed)
    if problem.known_constraint is not None:
        pool = problem.space.distinct(problem.known_constraint.within(pool, rng, fixed))
    features = problem.space.features(pool)
    seed = int(rng.integers(2**31))
    predictions: dict[str, Floats] = {
        target.name: BoostedTrees(target, seed=seed).predict(features)
        for target in problem.targets
    }
    objectives = []
    for j, target in enumerate(problem.objectives):
        if j == problem.known_objective:
            objectives.append(problem.known_values(pool))
        elif target is not None:
            objectives.append(predictions[target.name])
    violation = np.zeros(len(pool))
    for constraint in problem.constraints:
        violation += np.maximum(predictions[constraint.name], 0)
    order = np.lexsort((_cost(objectives, len(pool)), violation))  # step 4
    recorded = [
        {name: float(values[row]) for name, values in predictions.items()} for row in order
    ]
    return Ranking(list(map(tuple, pool[order].tolist())), recorded)


def _cost(objectives: list[Floats], count: int) -> Floats:
    """Return one objective as it is, several as the number of candidates that dominate each."""
    if not objectives:
        return np.zeros(count)
    if len(objectives) == 1:
        return objectives[0]
    values = np.stack(objectives, axis=1)
    dominators = [
        np.count_nonzero(np.all(values <= row, axis=1) & np.any(values < row, axis=1))
        for row in values
    ]
    return np.array(dominators, dtype=np.float64)
