"""Warm start: the trials of another study carried over to this grid, and what they recommend.

A parameter takes the value of the other study's parameter of the same name. Where there is none,
names of the form ``layer/component[/bucketN]`` are matched by the position of the layer between
input and output (relative, so that networks of other depths match), the component and the bucket.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.study import Study, StudyDirection
from optuna.trial import TrialState

from sgquant_optuna.sampler.candidates import distinct, neighbours, random_candidates
from sgquant_optuna.sampler.history import Record, record_of
from sgquant_optuna.sampler.known_objective import KnownObjective
from sgquant_optuna.sampler.problem import Problem
from sgquant_optuna.sampler.space import Features, FiniteSpace, Floats, Index, Indices
from sgquant_optuna.sampler.surrogate import CostModels, Posterior, Prior, Surrogate

_SEARCH_ROUNDS = 3


@dataclass(frozen=True)
class Transfer:
    """Knowledge from another study, on the grid of this one.

    Args:
        problem:
            Measurements of the other study, as if they were made here.
        priors:
            Expected targets by name, before anything is measured here.
    """

    problem: Problem
    priors: Mapping[str, Prior]


class Source:
    """The complete trials of another study at the time it was given.

    Args:
        study:
            The other study.

    Raises:
        ValueError:
            If it has no complete trial.
    """

    def __init__(self, study: Study) -> None:
        """Copy the trials, so that later ones do not change what workers agree on."""
        self._trials = study.get_trials(deepcopy=True, states=(TrialState.COMPLETE,))
        self.directions, self.metric_names = study.directions, study.metric_names
        if not self._trials:
            raise ValueError(
                f"warm start: expected complete trials in study {study.study_name!r}, got none"
            )

    def has_other_metrics(self, study: Study) -> bool:
        """Tell whether both studies name what they measure, by other names."""
        names = (self.metric_names, study.metric_names)
        return None not in names and names[0] != names[1]

    def transfer(
        self,
        space: FiniteSpace,
        directions: Sequence[StudyDirection],
        known: KnownObjective | None,
    ) -> Transfer | None:
        """Carry the trials over to a grid; ``None`` if fewer than two of them fit it."""
        if list(directions) != list(self.directions):
            return None
        names = corresponding_names(space.names, sorted(self._trials[0].params))
        if names is None:
            return None
        distributions = self._trials[0].distributions
        # The position of a width must not be taken for a width, though some numbers are both.
        if not all(space.is_of_kind(name, distributions[names[name]]) for name in names):
            return None
        records = self._records(space, names)
        if len(records) < 2:
            return None
        problem = Problem(space, records, directions, known)
        priors = {target.name: _prior(Surrogate(target, seed=0)) for target in problem.targets}
        return Transfer(problem, priors)

    def _records(self, space: FiniteSpace, names: Mapping[str, str]) -> list[Record]:
        records: list[Record] = []
        for trial in self._trials:
            if all(source in trial.params for source in names.values()):
                params = {name: trial.params[source] for name, source in names.items()}
                record = record_of(trial, space, params)
                if record.index is not None and record.values:
                    records.append(record)
        return records


def _prior(surrogate: Surrogate) -> Prior:
    def expected(features: Features) -> Floats:
        return surrogate.unwarp(surrogate.predict(features).mean)

    return expected


def corresponding_names(names: Sequence[str], sources: Sequence[str]) -> dict[str, str] | None:
    """Match every parameter with one of another study.

    Args:
        names:
            Names to match.
        sources:
            Names of the other study.

    Returns:
        The other study's name of each, or ``None`` if one has no counterpart.
    """
    own, other = _sites(names), _sites(sources)
    matches = {}
    for name in names:
        if name in other:
            matches[name] = name
            continue
        site = own[name]
        candidates = [s for s in sources if other[s].component == site.component]
        if not candidates or site.position is None:
            return None
        distance = [(other[s].distance(site), s) for s in candidates]
        matches[name] = min(distance)[1]
    return matches


@dataclass(frozen=True)
class _Site:
    position: float | None  # of the layer, 0 at the input and 1 at the output
    component: str
    bucket: int

    def distance(self, other: _Site) -> tuple[float, int]:
        layers = abs((self.position or 0.0) - (other.position or 0.0))
        return layers, abs(self.bucket - other.bucket)


def _sites(names: Sequence[str]) -> dict[str, _Site]:
    parsed = {name: _split(name) for name in names}
    layers = sorted({layer for layer, _, _ in parsed.values() if layer}, key=_natural)
    last = max(len(layers) - 1, 1)
    return {
        name: _Site(layers.index(layer) / last if layer else None, component, bucket)
        for name, (layer, component, bucket) in parsed.items()
    }


def _split(name: str) -> tuple[str, str, int]:
    """Layer, component and bucket of ``layer/component[/bucketN]``; else a layer by itself."""
    *head, tail = name.split("/")
    bucket = 0
    if head and (match := re.fullmatch(r"bucket(\d+)", tail)):
        bucket = int(match[1])
        *head, tail = head
    return ("/".join(head), tail, bucket) if head else (tail, "", bucket)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort ``conv10`` after ``conv9``."""
    return [(int(p), "") if p.isdigit() else (0, p) for p in re.split(r"(\d+)", name)]


def recommend(
    problem: Problem,
    rng: np.random.Generator,
    *,
    size: int,
    n_sample: int,
    fixed: Mapping[str, int],
) -> list[Index]:
    """Choose configurations along the trade-off that the models of another study predict.

    The limit and the scale of the other study need not hold here, so its best configuration alone
    would teach little. The trade-off carries over: the least objective for every degree of
    violation, from safe to somewhat violated, whether it was measured or not.

    Args:
        problem:
            Measurements of the other study on this grid; at least two.
        rng:
            Source of randomness.
        size:
            Number of configurations to choose.
        n_sample:
            Number of random candidates, and of neighbours of the trade-off found among them.
        fixed:
            Positions of enqueued parameters.

    Returns:
        At most ``size`` configurations, those closest to the limit first.
    """
    models = CostModels(problem, seed=int(rng.integers(2**31)))
    pool = _pool_around_front(models, rng, n_sample, fixed)
    criteria = _criteria(models, models.posterior(pool))
    front = _front(criteria)
    last = criteria[-1, front]
    if problem.constraints:
        # No worse than the median of what the other study measured.
        usual = np.median(_criteria(models, models.posterior(problem.measured))[-1])
        front = front[last <= max(usual, last.min())]
        last = criteria[-1, front]
    order = front[np.argsort(last, kind="stable")]
    spread = np.unique(np.linspace(0, len(order) - 1, min(size, len(order))).round().astype(int))
    chosen = order[spread]
    if problem.constraints:
        chosen = chosen[np.argsort(np.abs(criteria[-1, chosen]), kind="stable")]
    return list(map(tuple, pool[chosen].tolist()))


def _pool_around_front(
    models: CostModels, rng: np.random.Generator, n_sample: int, fixed: Mapping[str, int]
) -> Indices:
    """Measured and random configurations, refined by neighbours of their front."""
    problem, space = models.problem, models.problem.space
    pool = np.concatenate([problem.measured, random_candidates(space, rng, n_sample, fixed)])
    for _ in range(_SEARCH_ROUNDS):
        pool = distinct(pool, rng, space, fixed)
        front = _front(_criteria(models, models.posterior(pool)))
        pool = np.concatenate([pool[front], neighbours(space, rng, pool[front], n_sample // 2)])
    return distinct(pool, rng, space, fixed)


def _criteria(models: CostModels, candidates: Posterior) -> Floats:
    """Objectives, then the largest violation if there are constraints, ``[criteria, n]``."""
    problem = models.problem
    rows = [candidates.objective(problem, j) for j in range(len(problem.signs))]
    if problem.constraints:
        means = [candidates.predictions[c.name].mean for c in problem.constraints]
        rows.append(np.max(means, axis=0))
    return np.stack(rows)


def _front(criteria: Floats) -> Indices:
    """Positions of the columns that no other column dominates, by the last criterion."""
    alive = np.lexsort(criteria)
    front: list[int] = []
    for position in alive:
        column = criteria[:, position, None]
        kept = criteria[:, front]
        if not np.any(np.all(kept <= column, axis=0)):
            front.append(int(position))
    return np.array(front, dtype=np.int64)
