"""Candidates of a round: random ones, neighbours of good ones, uniform ones; and their ranking."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from sgquant_optuna.sampler.space import FiniteSpace, Index, Indices

_ENUMERABLE = 2  # grids of up to this number times n_sample are listed completely
_STEP_PROBABILITY = 0.7  # of a change that is a single step, where the values are ordered


@dataclass(frozen=True)
class Ranking:
    """Candidates of one round, best first, with their predictions.

    Args:
        configurations:
            Distinct configurations.
        predictions:
            Prediction of each, to be recorded with its trial; empty if nothing was predicted.
        admit:
            Function that brings any other configurations within the known constraint; ``None``
            without one.
    """

    configurations: list[Index]
    predictions: list[dict[str, float]] = field(default_factory=list)
    admit: Callable[[Indices, np.random.Generator], Indices] | None = None

    def after(self, first: list[Index]) -> Ranking:
        """Return the ranking with some configurations in front, of which nothing is predicted."""
        predictions = self.predictions or [{}] * len(self.configurations)
        rest = [
            (index, prediction)
            for index, prediction in zip(self.configurations, predictions, strict=True)
            if index not in first
        ]
        return replace(
            self,
            configurations=[*first, *(index for index, _ in rest)],
            predictions=[*({} for _ in first), *(prediction for _, prediction in rest)],
        )


def random_candidates(
    space: FiniteSpace, rng: np.random.Generator, n_sample: int, fixed: Mapping[str, int]
) -> Indices:
    """Draw distinct random candidates, or list the grid if it is hardly larger than the sample.

    Args:
        space:
            Grid of the configurations.
        rng:
            Source of randomness.
        n_sample:
            Number of candidates to draw (the paper's N_sample), before repetitions are dropped.
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
            Grid of the configurations.
        rng:
            Source of randomness.
        parents:
            Good configurations, ``[p, parameters]``, p > 0.
        count:
            Number of neighbours to draw.

    Returns:
        Neighbours, ``[count, parameters]``; some may equal a parent.
    """
    children = parents[rng.integers(len(parents), size=count)].copy()
    rows = np.arange(count)
    changes = rng.integers(1, 4, size=count)
    for change in range(3):
        columns = rng.integers(len(space.names), size=count)
        moved = moved_positions(space, rng, children[rows, columns], columns)
        active = changes > change
        children[rows[active], columns[active]] = moved[active]
    return children


def moved_positions(
    space: FiniteSpace, rng: np.random.Generator, positions: Indices, columns: Indices
) -> Indices:
    """Move positions, mostly by a single step where the values are ordered.

    Args:
        space:
            Grid of the configurations.
        rng:
            Source of randomness.
        positions:
            Positions to move, ``[n]``.
        columns:
            Parameter of each position, ``[n]``.

    Returns:
        New positions, ``[n]``; some may be the old ones.
    """
    steps = positions + rng.choice([-1, 1], size=len(positions))
    steps = np.clip(steps, 0, space.cardinalities[columns] - 1)
    anywhere = np.floor(rng.random(len(positions)) * space.cardinalities[columns])
    is_step = space.is_ordered[columns] & (rng.random(len(positions)) < _STEP_PROBABILITY)
    return np.where(is_step, steps, anywhere.astype(np.int64))


def anchors(space: FiniteSpace) -> Indices:
    """Uniform configurations: every parameter at the same relative position in its range."""
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
    shuffled: Indices = pool[rng.permutation(len(pool))]  # shuffling the rows in place is slow
    return shuffled
