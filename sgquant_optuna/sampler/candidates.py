"""Candidates for the cost model to rank: random ones, neighbours of good ones, and anchors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sgquant_optuna.sampler.space import FiniteSpace, Index, Indices

_ENUMERABLE = 2  # grids up to this many times n_sample are listed whole


@dataclass(frozen=True)
class Ranking:
    """Candidates of one round, best first, with what the model predicted of each.

    Args:
        configurations:
            Distinct configurations.
        predictions:
            Notes for the trial's user attributes; empty where nothing was predicted.
    """

    configurations: list[Index]
    predictions: list[dict[str, float]] = field(default_factory=list)


def random_candidates(
    space: FiniteSpace, rng: np.random.Generator, n_sample: int, fixed: Mapping[str, int]
) -> Indices:
    """Draw distinct random candidates, all of the grid where it is hardly larger than the sample.

    Args:
        space:
            The grid.
        rng:
            Source of randomness.
        n_sample:
            Candidates to draw (the paper's N_sample), before repetitions are dropped.
        fixed:
            Positions of enqueued parameters, which every candidate gets.

    Returns:
        Candidates in random order, ``[n, parameters]``.
    """
    small = space.size <= _ENUMERABLE * n_sample
    pool = space.all() if small else space.random(rng, n_sample)
    return distinct(pool, rng, space, fixed)


def neighbours(
    space: FiniteSpace, rng: np.random.Generator, parents: Indices, count: int
) -> Indices:
    """Change one to three parameters of good configurations, mostly by a single step.

    Args:
        space:
            The grid.
        rng:
            Source of randomness.
        parents:
            Good configurations, ``[p, parameters]``, p > 0.
        count:
            Neighbours to draw.

    Returns:
        Neighbours, ``[count, parameters]``; some may equal a parent.
    """
    children = parents[rng.integers(len(parents), size=count)].copy()
    rows = np.arange(count)
    changes = rng.integers(1, 4, size=count)
    for change in range(3):
        columns = rng.integers(len(space.names), size=count)
        steps = children[rows, columns] + rng.choice([-1, 1], size=count)
        steps = np.clip(steps, 0, space.cardinalities[columns] - 1)
        anywhere = np.floor(rng.random(count) * space.cardinalities[columns]).astype(np.int64)
        is_step = space.is_ordered[columns] & (rng.random(count) < 0.7)
        moved = np.where(is_step, steps, anywhere)
        active = changes > change
        children[rows[active], columns[active]] = moved[active]
    return children


def anchors(space: FiniteSpace) -> Indices:
    """Uniform configurations: every parameter at the same relative height of its range."""
    levels = int(space.cardinalities.max())
    heights = np.linspace(0, 1, min(levels, 16))
    return np.rint(heights[:, None] * (space.cardinalities - 1)).astype(np.int64)


def distinct(
    pool: Indices, rng: np.random.Generator, space: FiniteSpace, fixed: Mapping[str, int]
) -> Indices:
    """Set the enqueued parameters, drop repetitions and shuffle."""
    pool = pool.copy()
    for name, position in fixed.items():
        pool[:, space.names.index(name)] = position
    pool = space.distinct(pool)
    rng.shuffle(pool)
    return pool
