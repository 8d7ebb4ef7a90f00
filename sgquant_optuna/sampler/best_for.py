"""Answer another budget from what was measured already, with no further training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.search_space import intersection_search_space
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr, ndtri

from sgquant_optuna.sampler.candidates import anchors, distinct, neighbours, random_candidates
from sgquant_optuna.sampler.known_objective import KnownObjective
from sgquant_optuna.sampler.problem import target_of
from sgquant_optuna.sampler.space import FiniteSpace, Floats, Indices, is_finite, single_value
from sgquant_optuna.sampler.surrogate import Surrogate

_CANDIDATES = 4000
_SEARCH_ROUNDS = 6


@dataclass(frozen=True)
class Answer:
    """A configuration for another budget, and how sure the model is of it.

    Args:
        params:
            Its parameters.
        memory:
            What ``known_objective`` computes of it, in the unit of that.
        drop:
            Expected accuracy drop, in the unit of the measured drops (percentage points).
        drop_deviation:
            Standard deviation of the expectation, without the noise of one measurement.
        probability:
            Probability that the true drop is at most ``max_drop``; with a memory budget, that it
            is at most the lowest measured drop of all configurations within the budget (1 if none
            was measured there).
        trials:
            Numbers of the trials that measured this very configuration; empty if none did.
    """

    params: dict[str, Any]
    memory: float
    drop: float
    drop_deviation: float
    probability: float
    trials: tuple[int, ...]


def best_for(
    study: Study,
    *,
    known_objective: Callable[[dict[str, Any]], float],
    budget_bytes: float | None = None,
    max_drop: float | None = None,
    confidence: float = 0.9,
    measured_only: bool = False,
    drop_of: Callable[[FrozenTrial], float | None] | None = None,
    search_space: Mapping[str, BaseDistribution] | None = None,
    seed: int = 0,
) -> Answer | None:
    """Find the best configuration for another budget from a study's history.

    A cost model of the accuracy drop is fitted on the complete trials; it joins repeated
    measurements and takes their noise, which it learns, as a safety margin.

    Args:
        study:
            The study, constrained or with two objectives.
        known_objective:
            Memory of given parameters.
        budget_bytes:
            Find the lowest expected drop with at most this memory, in the unit of
            ``known_objective``.
        max_drop:
            Find the least memory whose drop is at most this, in percentage points, with the given
            confidence.
        confidence:
            Probability asked for with ``max_drop``, in (0, 1).
        measured_only:
            Consider only configurations that were measured.
        drop_of:
            Reads the drop of a trial (``None``: skip the trial). By default it is the user
            attribute ``accuracy_drop``, or else the second of two objectives.
        search_space:
            The parameters; by default those that all complete trials share.
        seed:
            Seed of the candidates.

    Returns:
        The answer, or ``None`` if no candidate satisfies the budget.

    Raises:
        ValueError:
            If not exactly one of ``budget_bytes`` and ``max_drop`` is given, the confidence is not
            in (0, 1), or fewer than two trials have a drop.
    """
    if (budget_bytes is None) == (max_drop is None):
        raise ValueError("best_for: expected exactly one of budget_bytes and max_drop")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number in (0, 1), got {confidence}")
    given = search_space if search_space is not None else _shared_space(study)
    defaults = {n: single_value(d) for n, d in given.items() if d.single()}
    space = FiniteSpace({n: d for n, d in given.items() if is_finite(d) and not d.single()})
    rows, drops, numbers = _measured(study, space, drop_of or _default_drop)
    if len(rows) < 2:
        raise ValueError(f"best_for: expected two complete trials with a drop, got {len(rows)}")
    memory = KnownObjective(known_objective, space, objective=0, sign=1.0, defaults=defaults)
    target = target_of(space, "drop", rows, drops)
    surrogate = Surrogate(target, seed=seed)
    solver = _Solver(surrogate, space, memory, budget_bytes, max_drop, confidence)

    rng = np.random.default_rng(seed)
    pool = target.indices
    if not measured_only:
        drawn = random_candidates(space, rng, _CANDIDATES, {})
        pool = np.concatenate([pool, drawn, anchors(space)])
        for _ in range(_SEARCH_ROUNDS):
            parents = pool[np.argsort(solver.cost(pool), kind="stable")[:20]]
            near = neighbours(space, rng, parents, _CANDIDATES // 4)
            pool = distinct(np.concatenate([pool, near]), rng, space, {})
    cost = solver.cost(pool)
    best = int(np.argmin(cost))
    if not np.isfinite(cost[best]):
        return None
    chosen = pool[best : best + 1]
    index = tuple(chosen[0].tolist())
    same = np.all(rows == chosen, axis=1)
    drop, deviation = solver.expectation(chosen)
    limit = max_drop if max_drop is not None else np.inf
    if budget_bytes is not None:
        within = memory.values(target.indices) <= budget_bytes
        limit = float(np.min(target.values, initial=np.inf, where=within))
    return Answer(
        params={**defaults, **space.params_of(index)},
        memory=float(memory.values(chosen)[0]),
        drop=drop,
        drop_deviation=deviation,
        probability=float(solver.probability(chosen, limit)[0]),
        trials=tuple(int(n) for n in numbers[same]),
    )


class _Solver:
    """Cost of candidates under one budget; infinite where it is exceeded."""

    def __init__(
        self,
        surrogate: Surrogate,
        space: FiniteSpace,
        memory: KnownObjective,
        budget: float | None,
        max_drop: float | None,
        confidence: float,
    ) -> None:
        self._surrogate, self._space, self._memory = surrogate, space, memory
        self._budget, self._max_drop, self._confidence = budget, max_drop, confidence

    def cost(self, indices: Indices) -> Floats:
        memory = self._memory.values(indices)
        prediction = self._surrogate.predict(self._space.features(indices))
        if self._budget is not None:
            return np.where(memory <= self._budget, prediction.mean, np.inf)
        assert self._max_drop is not None
        margin = ndtri(self._confidence) * prediction.deviation
        limit = self._surrogate.warp(np.array(self._max_drop))
        return np.where(prediction.mean + margin <= limit, memory, np.inf)

    def expectation(self, indices: Indices) -> tuple[float, float]:
        prediction = self._surrogate.predict(self._space.features(indices))
        low, middle, high = (
            float(self._surrogate.unwarp(prediction.mean + z * prediction.deviation)[0])
            for z in (-1, 0, 1)
        )
        return middle, (high - low) / 2

    def probability(self, indices: Indices, limit: float) -> Floats:
        if limit == np.inf:
            return np.ones(len(indices))
        prediction = self._surrogate.predict(self._space.features(indices))
        warped = self._surrogate.warp(np.array(limit))
        probability: Floats = ndtr((warped - prediction.mean) / prediction.deviation)
        return probability


def _shared_space(study: Study) -> dict[str, BaseDistribution]:
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return intersection_search_space(trials)


def _default_drop(trial: FrozenTrial) -> float | None:
    drop = trial.user_attrs.get("accuracy_drop")
    if drop is None and len(trial.values) == 2:
        return float(trial.values[1])
    return None if drop is None else float(drop)


def _measured(
    study: Study, space: FiniteSpace, drop_of: Callable[[FrozenTrial], float | None]
) -> tuple[Indices, Floats, Indices]:
    rows, drops, numbers = [], [], []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        index, drop = space.index_of(trial.params), drop_of(trial)
        if index is not None and drop is not None and np.isfinite(drop):
            rows.append(index)
            drops.append(drop)
            numbers.append(trial.number)
    shape = (-1, len(space.names))
    return (
        np.array(rows, dtype=np.int64).reshape(shape),
        np.array(drops, dtype=np.float64),
        np.array(numbers, dtype=np.int64),
    )
