"""The best configuration for another budget, from the history of a study and without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.search_space import intersection_search_space
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtri

from sgquant_optuna.sampler.candidates import anchors, distinct, neighbours, random_candidates
from sgquant_optuna.sampler.cost_model import (
    DEFAULT_COST_MODEL,
    CostModel,
    CostModelName,
    check_cost_model,
)
from sgquant_optuna.sampler.filling import raised
from sgquant_optuna.sampler.gaussian_process import Prediction
from sgquant_optuna.sampler.known_constraint import KnownConstraint
from sgquant_optuna.sampler.known_objective import KnownFunction, KnownObjective
from sgquant_optuna.sampler.problem import Target, target_of
from sgquant_optuna.sampler.space import FiniteSpace, Floats, Indices, is_finite, single_value
from sgquant_optuna.sampler.surrogate import Surrogate, probability_below

DROP_KEY = "accuracy_drop"
"""User attribute of a trial: its accuracy drop in percentage points.

The objective writes it: that of the package's own searches, or the user's in any other study.
"""

_CANDIDATES = 4000
_SEARCH_ROUNDS = 6
_PARENTS = 20
_NEAR = 0.01  # share of a budget that may be left unused as if it were used up


@dataclass(frozen=True)
class Answer:
    """A configuration for another budget, and the certainty of the cost model about it.

    Args:
        params:
            Parameters of the configuration.
        memory:
            Value of ``known_objective``, in its unit.
        drop:
            Expected accuracy drop, in the unit of the measured drops (percentage points).
        drop_deviation:
            Standard deviation of the expectation, without the noise of one measurement.
        probability:
            Probability that the true drop is at most ``max_drop``; with a memory budget, that it
            is at most the lowest measured drop of all configurations within the budget (1 if none
            was measured there).
        trials:
            Numbers of the trials that measured this configuration; empty if none did.
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
    cost_model: CostModelName | CostModel = DEFAULT_COST_MODEL,
) -> Answer | None:
    """Find the best configuration for another budget from the history of a study.

    A cost model of the accuracy drop is fitted on the complete trials. It joins repeated
    measurements, learns their noise and takes it as a safety margin.

    Args:
        study:
            Study to read, constrained or with two objectives.
        known_objective:
            Function that computes the memory of given parameters.
        budget_bytes:
            Largest memory, in the unit of ``known_objective``: find the lowest expected drop. A
            configuration that leaves more than 1 % of it unused has to be better by more than the
            deviation of its expectation, and is raised as far as it goes: more memory rarely costs
            accuracy.
        max_drop:
            Largest drop, in percentage points: find the least memory whose drop is at most this
            with the given confidence.
        confidence:
            Required probability with ``max_drop``, in (0, 1).
        measured_only:
            Whether to consider only configurations that were measured.
        drop_of:
            Function that reads the drop of a trial, or ``None`` to skip the trial. By default it
            is the user attribute ``accuracy_drop``, or else the second of two objectives.
        search_space:
            Parameters to choose; by default those that all complete trials share.
        seed:
            Seed of the candidates.
        cost_model:
            Regression of the drop, as for :class:`SGQuantSampler`; it need not be that of the
            study.

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
    check_cost_model(cost_model)
    rows, drops, numbers = _measured(study, space, drop_of or _default_drop)
    if len(rows) < 2:
        raise ValueError(f"best_for: expected two complete trials with a drop, got {len(rows)}")
    memory = KnownObjective(known_objective, space, objective=0, sign=1.0, defaults=defaults)
    target = target_of(space, "drop", rows, drops)
    constraint = None
    if budget_bytes is not None:
        within = _below(known_objective, budget_bytes, space, defaults)
        try:
            constraint = KnownConstraint(within, space, slack=_NEAR * abs(budget_bytes))
        except ValueError:  # nothing is within it
            return None
    surrogate = Surrogate(target, seed=seed, cost_model=cost_model)
    budget = _Budget(surrogate, space, memory, constraint, max_drop, confidence)
    pool = target.indices if measured_only else _search(budget, target.indices, seed)
    cost = budget.cost(pool)
    best = int(np.argmin(cost))
    if not np.isfinite(cost[best]):
        return None
    chosen = pool[best : best + 1]
    if constraint is not None and not measured_only:
        chosen = raised(chosen[0], budget.mean, constraint, np.arange(len(space.names)))[None]
    drop, deviation = budget.expectation(chosen)
    return Answer(
        params={**defaults, **space.params_of(tuple(chosen[0].tolist()))},
        memory=float(memory.values(chosen)[0]),
        drop=drop,
        drop_deviation=deviation,
        probability=budget.probability(chosen, budget.limit(target)),
        trials=tuple(int(n) for n in numbers[np.all(rows == chosen, axis=1)]),
    )


@dataclass(frozen=True)
class _Budget:
    """Cost of candidates under one budget; infinite where the budget is exceeded."""

    surrogate: Surrogate
    space: FiniteSpace
    memory: KnownObjective
    constraint: KnownConstraint | None
    max_drop: float | None
    confidence: float

    def cost(self, indices: Indices) -> Floats:
        memory = self.memory.values(indices)
        prediction = self._predict(indices)
        if self.constraint is not None:
            # What leaves a part of the budget unused must be better for certain.
            near = self.constraint.uses_it_up(indices)
            cost = prediction.mean + np.where(near, 0.0, prediction.deviation)
            return np.where(self.constraint.holds(indices), cost, np.inf)
        assert self.max_drop is not None
        margin = ndtri(self.confidence) * prediction.deviation
        limit = self.surrogate.warp(np.array(self.max_drop))
        return np.where(prediction.mean + margin <= limit, memory, np.inf)

    def limit(self, target: Target) -> float:
        """Drop that the answer shall not exceed: the given one, or the lowest in the budget."""
        if self.constraint is None:
            assert self.max_drop is not None
            return self.max_drop
        within = self.constraint.holds(target.indices)
        return float(np.min(target.values, initial=np.inf, where=within))

    def mean(self, indices: Indices) -> Floats:
        """Expected drop of configurations, on the scale of the model."""
        return self._predict(indices).mean

    def expectation(self, chosen: Indices) -> tuple[float, float]:
        """Expected drop of one configuration, and its standard deviation."""
        prediction = self._predict(chosen)
        low, middle, high = (
            float(self.surrogate.unwarp(prediction.mean + z * prediction.deviation)[0])
            for z in (-1, 0, 1)
        )
        return middle, (high - low) / 2

    def probability(self, chosen: Indices, limit: float) -> float:
        """Probability that the drop of one configuration is at most a limit."""
        if limit == np.inf:
            return 1.0
        warped = self.surrogate.warp(np.array(limit))
        return float(probability_below(self._predict(chosen), warped)[0])

    def _predict(self, indices: Indices) -> Prediction:
        return self.surrogate.predict(self.space.features(indices))


def _search(budget: _Budget, measured: Indices, seed: int) -> Indices:
    """Measured, random and uniform configurations, refined by neighbours of the best of them."""
    space, rng = budget.space, np.random.default_rng(seed)
    drawn = random_candidates(space, rng, _CANDIDATES, {})
    pool = np.concatenate([measured, drawn, anchors(space)])
    if budget.constraint is not None:
        within = budget.constraint.within(pool, rng, {})
        filled = budget.constraint.filled(within, rng, {})
        listed = budget.constraint.listed(rng, _CANDIDATES)
        pool = space.distinct(np.concatenate([within, filled, listed]))
    for _ in range(_SEARCH_ROUNDS):
        parents = pool[np.argsort(budget.cost(pool), kind="stable")[:_PARENTS]]
        near = neighbours(space, rng, parents, _CANDIDATES // 4)
        pool = distinct(np.concatenate([pool, near]), rng, space, {})
    return pool


def _below(
    known_objective: Callable[[dict[str, Any]], float],
    budget: float,
    space: FiniteSpace,
    defaults: Mapping[str, Any],
) -> KnownFunction:
    return KnownFunction(lambda p: known_objective(p) - budget, space, defaults=defaults)


def _shared_space(study: Study) -> dict[str, BaseDistribution]:
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return intersection_search_space(trials)


def _default_drop(trial: FrozenTrial) -> float | None:
    drop = trial.user_attrs.get(DROP_KEY)
    if drop is None and len(trial.values) == 2:
        return float(trial.values[1])
    return float(drop) if isinstance(drop, int | float) else None


def _measured(
    study: Study, space: FiniteSpace, drop_of: Callable[[FrozenTrial], float | None]
) -> tuple[Indices, Floats, Indices]:
    """Configurations, drops and trial numbers of the measurements of a study."""
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
