"""Explanations of the cost model, as arrays for tables and plots: calibration and sensitivity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.search_space import intersection_search_space
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from sgquant_optuna.sampler.claims import PREDICTED_KEY as PREDICTED_KEY
from sgquant_optuna.sampler.claims import constraints_of
from sgquant_optuna.sampler.claims import prediction_of as prediction_of
from sgquant_optuna.sampler.cost_model import (
    DEFAULT_COST_MODEL,
    CostModel,
    CostModelName,
    check_cost_model,
)
from sgquant_optuna.sampler.history import record_of
from sgquant_optuna.sampler.problem import Target, constraint_targets, objective_target
from sgquant_optuna.sampler.space import FiniteSpace, Floats, is_finite
from sgquant_optuna.sampler.surrogate import Surrogate

_BACKGROUND = 256  # configurations to average over
_MAX_CHOICES = 64


@dataclass(frozen=True)
class Calibration:
    """Predictions and measurements of the trials that have both.

    Args:
        numbers:
            Trial numbers, ``[n]``.
        predicted:
            Predictions at the suggestion of the trials, in the unit of the measurement, ``[n]``.
        deviation:
            Standard deviations of the predictions (NaN where the model gives none), ``[n]``.
        measured:
            Measurements, ``[n]``.
    """

    numbers: np.ndarray[Any, np.dtype[np.int64]]
    predicted: Floats
    deviation: Floats
    measured: Floats

    @property
    def coverage(self) -> float:
        """Share of the measurements within two deviations; about 0.95 if there is no noise."""
        known = np.isfinite(self.deviation)
        if not known.any():
            return float("nan")
        distance = np.abs(self.measured - self.predicted)[known]
        return float(np.mean(distance <= 2 * self.deviation[known]))


@dataclass(frozen=True)
class Sensitivity:
    """Dependence of a target on one parameter, averaged over the others.

    Args:
        name:
            Name of the parameter.
        choices:
            Values of the parameter.
        expected:
            Mean prediction for each value, in the unit of the target, ``[choices]``.
    """

    name: str
    choices: tuple[Any, ...]
    expected: Floats

    @property
    def span(self) -> float:
        """Largest minus smallest mean prediction: the importance of the parameter."""
        return float(np.ptp(self.expected))


def calibration(study: Study, target: str) -> Calibration:
    """Compare the predictions at the suggestion of trials with their measurements.

    Args:
        study:
            Study that used this sampler.
        target:
            Name of the target: ``"objective 0"``, ``"constraint 0"`` and so on, as in the trials'
            user attribute ``predicted``.

    Returns:
        The comparison; its arrays are empty if nothing was predicted.

    Raises:
        ValueError:
            If the name is of another form.
    """
    rows = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        predicted = prediction_of(trial.user_attrs)
        measured = _measured(trial, target)
        if target in predicted and measured is not None and np.isfinite(measured):
            deviation = predicted.get(f"{target} deviation", np.nan)
            rows.append((trial.number, predicted[target], deviation, measured))
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)
    return Calibration(table[:, 0].astype(np.int64), table[:, 1], table[:, 2], table[:, 3])


def sensitivity(
    study: Study,
    target: str,
    *,
    search_space: Mapping[str, BaseDistribution] | None = None,
    seed: int = 0,
    cost_model: CostModelName | CostModel = DEFAULT_COST_MODEL,
) -> list[Sensitivity]:
    """Compute how a target depends on each parameter, by partial dependence of a cost model.

    Args:
        study:
            Any study with finite parameters.
        target:
            Name of the target: ``"objective 0"``, ``"constraint 0"`` and so on.
        search_space:
            Parameters to explain; by default those that all complete trials share.
        seed:
            Seed of the configurations to average over.
        cost_model:
            Regression of the target, as for :class:`SGQuantSampler`; it need not be that of the
            study.

    Returns:
        One entry for each parameter with more than one value, most important first.

    Raises:
        ValueError:
            If the name is of another form, or fewer than two trials measured it.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    given = search_space if search_space is not None else intersection_search_space(trials)
    space = FiniteSpace({n: d for n, d in given.items() if is_finite(d) and not d.single()})
    learned = _target(trials, space, target)
    if learned is None or len(learned.values) < 2:
        raise ValueError(f"sensitivity: expected two trials that measured {target!r}")
    surrogate = Surrogate(learned, seed=seed, cost_model=check_cost_model(cost_model))
    return partial_dependence(space, surrogate, seed=seed)


def partial_dependence(
    space: FiniteSpace, surrogate: Surrogate, *, seed: int = 0
) -> list[Sensitivity]:
    """Average a fitted cost model over all parameters but one, for each parameter.

    Args:
        space:
            Grid that the model was fitted on.
        surrogate:
            Fitted model.
        seed:
            Seed of the configurations to average over.

    Returns:
        One entry for each parameter, most important first.

    Reference:
        Friedman (2001), "Greedy Function Approximation: A Gradient Boosting Machine", section 8.2.
    """
    background = space.random(np.random.default_rng(seed), _BACKGROUND)
    entries = []
    for column, (name, cardinality) in enumerate(
        zip(space.names, space.cardinalities.tolist(), strict=True)
    ):
        count = min(cardinality, _MAX_CHOICES)
        positions = np.unique(np.linspace(0, cardinality - 1, count).astype(int))
        expected = []
        for position in positions:
            rows = background.copy()
            rows[:, column] = position
            expected.append(surrogate.predict(space.features(rows)).mean.mean())
        choices = tuple(space.value_at(name, int(position)) for position in positions)
        entries.append(Sensitivity(name, choices, surrogate.unwarp(np.array(expected))))
    return sorted(entries, key=lambda entry: -entry.span)


def _target(trials: list[FrozenTrial], space: FiniteSpace, target: str) -> Target | None:
    kind, key = _parse(target)
    records = [record_of(trial, space, trial.params) for trial in trials]
    records = [r for r in records if r.index is not None and r.values]
    if kind == "objective":
        return objective_target(space, records, int(key), 1.0)
    named = {t.name: t for t in constraint_targets(space, records)}
    return named.get(target)


def _measured(trial: FrozenTrial, target: str) -> float | None:
    kind, key = _parse(target)
    if kind == "constraint":
        return constraints_of(trial).get(key)
    return trial.values[int(key)] if int(key) < len(trial.values) else None


def _parse(target: str) -> tuple[str, str]:
    kind, _, key = target.partition(" ")
    if kind == "constraint" and key or kind == "objective" and key.isdigit():
        return kind, key
    raise ValueError(f"target: expected 'objective 0' or 'constraint 0', got {target!r}")
