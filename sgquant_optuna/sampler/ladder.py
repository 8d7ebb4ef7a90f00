"""The start of a study: uniform configurations, until the models have a bracket to work in.

The rungs of the ladder are the configurations whose ordered parameters all stand at the same
relative height. Where a constraint decides, bisection finds the lowest feasible rung: up from an
infeasible one, down from a feasible one. Without a constraint, some rungs span the ladder.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sgquant_optuna.sampler.candidates import anchors
from sgquant_optuna.sampler.problem import Problem
from sgquant_optuna.sampler.space import Index, Indices

_SPANNING = 4  # rungs that are measured where no constraint decides
_ENOUGH = 10  # measured configurations, uniform or not, that the models can begin with


def open_rungs(
    problem: Problem, rng: np.random.Generator, fixed: Mapping[str, int]
) -> list[Index]:
    """List the rungs that should be measured before the models choose.

    Args:
        problem:
            Measurements so far.
        rng:
            Source of randomness, for parameters without an order.
        fixed:
            Positions of enqueued parameters.

    Returns:
        Uniform configurations, most informative first; none once the start is over, or if no
        parameter is ordered.
    """
    space = problem.space
    ordered = np.flatnonzero(space.is_ordered)
    heights = np.unique(anchors(space)[:, ordered], axis=0)
    has_begun = len(problem.measured) > 0
    if not len(ordered) or len(problem.measured) >= _ENOUGH or has_begun and not problem.targets:
        return []
    rungs = space.random(rng, len(heights))
    rungs[:, ordered] = heights
    if problem.known_objective is not None:  # the cheap end is the low one
        costs = problem.known_values(rungs[[0, -1]])
        if costs[0] > costs[1]:
            rungs = rungs[::-1]
    is_feasible = _feasibility(problem, rungs[:, ordered], ordered)
    if problem.constraints or not has_begun:
        wanted = _bisection(is_feasible, len(rungs))
    else:
        spanning = np.linspace(0, len(rungs) - 1, min(_SPANNING, len(rungs))).round()
        wanted = [rung for rung in spanning.astype(int).tolist() if rung not in is_feasible]
    for name, position in fixed.items():
        rungs[:, space.names.index(name)] = position
    return list(dict.fromkeys(map(tuple, rungs[wanted].tolist())))


def _feasibility(problem: Problem, heights: Indices, ordered: Indices) -> dict[int, bool]:
    """Whether the measured rungs hold all constraints, by their place on the ladder."""
    violated = {
        tuple(index)
        for target in problem.constraints
        for index in target.indices[target.values > 0].tolist()
    }
    rung_of = {tuple(row): rung for rung, row in enumerate(heights.tolist())}
    is_feasible: dict[int, bool] = {}
    for index in problem.measured.tolist():
        rung = rung_of.get(tuple(index[column] for column in ordered))
        if rung is not None:
            is_feasible[rung] = is_feasible.get(rung, True) and tuple(index) not in violated
    return is_feasible


def _bisection(is_feasible: Mapping[int, bool], count: int) -> list[int]:
    """Rungs between the lowest feasible and the highest infeasible one below it, middle first."""
    high = min((rung for rung, holds in is_feasible.items() if holds), default=count)
    low = max((rung for rung in is_feasible if rung < high), default=-1)
    order: list[int] = []
    gaps = [(low, high)]
    for below, above in gaps:  # grows while it is read: the wide gaps come first
        if above - below > 1:
            middle = (below + above) // 2
            order.append(middle)
            gaps += [(below, middle), (middle, above)]
    return order
