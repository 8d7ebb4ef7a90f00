"""Surrogates: a cost model for each target, and the joint posterior of all targets of a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from sgquant_optuna.sampler.cost_model import (
    DEFAULT_COST_MODEL,
    CostModel,
    CostModelName,
    fit_cost_model,
)
from sgquant_optuna.sampler.gaussian_process import Prediction
from sgquant_optuna.sampler.problem import Problem, Target
from sgquant_optuna.sampler.space import Features, Floats, Indices

Prior = Callable[[Features], Floats]
"""Expected target of configurations by the model of another study, in the unit of the target."""

# What stays on the linear part of the scale: the measurements nearest to the origin.
_FINE_COUNT = 6
_FINE_SHARE = 0.25  # a share of all where that is more
_MOST_FINE = 0.6  # no more than this share, so that few measurements still leave a far end
_MAX_SINH = 300.0  # sinh overflows above 710


class Surrogate:
    """Cost model of one target whose values span orders of magnitude, as accuracy drops do.

    Values are warped by ``asinh((value - origin) / unit)``: linear near the origin, logarithmic
    far away, so that drops of 30 points do not hide differences of 0.1 points. The origin of a
    constraint is its limit 0, that of an objective the best value.

    Args:
        target:
            Target to learn.
        seed:
            Seed of the model.
        prior:
            Predictions of another study's model, used as the mean before any measurement. The
            model then learns the difference only.
        cost_model:
            Regression of the warped values.
    """

    def __init__(
        self,
        target: Target,
        *,
        seed: int,
        prior: Prior | None = None,
        cost_model: CostModelName | CostModel = DEFAULT_COST_MODEL,
    ) -> None:
        """Fit the model."""
        self._origin = 0.0 if target.name.startswith("constraint") else float(target.values.min())
        distance = np.abs(target.values - self._origin)
        unit = float(np.quantile(distance, _fine_share(len(distance))))
        self._unit = max(unit, 1e-3 * float(distance.mean()), 1e-12)
        self._prior = prior
        self._offset, self._slope = 0.0, 0.0
        warped = self.warp(target.values)
        if prior is not None:
            expected = self.warp(prior(target.features))
            self._offset, self._slope = _shrunken_line(expected, warped)
        warped = warped - self._prior_mean(target.features)
        self._model = fit_cost_model(
            cost_model,
            target.features,
            warped,
            target.counts,
            seed=seed,
            ordered=target.ordered,
        )

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of one measurement near the origin, in the unit of the target."""
        return self._model.noise_deviation * self._unit

    def warp(self, values: Floats) -> Floats:
        """Map values to the scale of the model."""
        warped: Floats = np.arcsinh((values - self._origin) / self._unit)
        return warped

    def unwarp(self, warped: Floats) -> Floats:
        """Map the scale of the model back to values."""
        clipped = np.clip(warped, -_MAX_SINH, _MAX_SINH)
        values: Floats = self._origin + self._unit * np.sinh(clipped)
        return values

    def predict(self, features: Features) -> Prediction:
        """Predict configurations on the scale of the model."""
        prediction = self._model.predict(features)
        return Prediction(prediction.mean + self._prior_mean(features), prediction.deviation)

    def sample(self, features: Features, rng: np.random.Generator, count: int) -> Floats:
        """Draw targets jointly on the scale of the model, ``[count, n]``."""
        drawn: Floats = self._model.sample(features, rng, count) + self._prior_mean(features)
        return drawn

    def _prior_mean(self, features: Features) -> Floats:
        if self._prior is None:
            return np.zeros(len(features))
        mean: Floats = self._offset + self._slope * self.warp(self._prior(features))
        return mean


def _fine_share(measurements: int) -> float:
    """Share of the measurements that stays on the linear part of the scale.

    A quarter of a handful would be one measurement, the luckiest, and would stretch the rest.
    """
    return min(_MOST_FINE, max(_FINE_SHARE, _FINE_COUNT / measurements))


def probability_below(prediction: Prediction, threshold: float | Floats = 0.0) -> Floats:
    """Probability that the target itself, without noise, is at most a threshold, ``[n]``."""
    probability: Floats = ndtr((threshold - prediction.mean) / prediction.deviation)
    return probability


def _shrunken_line(x: Floats, y: Floats) -> tuple[float, float]:
    """Fit ``y = offset + slope * x``, shrunk towards offset 0 and slope 1.

    The ridge penalty weighs as much as two measurements.
    """
    design = np.stack([np.ones_like(x), x], axis=1)
    weight = 2 * np.diag([1.0, max(float(np.mean(x**2)), 1e-12)])
    offset, slope = np.linalg.solve(design.T @ design + weight, design.T @ y + weight @ [0.0, 1.0])
    return float(offset), max(float(slope), 0.0)


class CostModels:
    """The surrogates of one round, one for each target.

    Args:
        problem:
            Measurements to learn from.
        seed:
            Seed of the models.
        priors:
            Predictions of another study's models by the name of the target.
        cost_model:
            Regression of each target.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        priors: Mapping[str, Prior] | None = None,
        cost_model: CostModelName | CostModel = DEFAULT_COST_MODEL,
    ) -> None:
        """Fit one model for each target."""
        self.problem = problem
        self.surrogates = {
            target.name: Surrogate(
                target, seed=seed, prior=(priors or {}).get(target.name), cost_model=cost_model
            )
            for target in problem.targets
        }

    def posterior(self, indices: Indices) -> Posterior:
        """Predict all targets of some configurations."""
        features = self.problem.space.features(indices)
        predictions = {name: s.predict(features) for name, s in self.surrogates.items()}
        feasible = np.ones(len(indices))
        for constraint in self.problem.constraints:
            feasible *= probability_below(predictions[constraint.name])
        if self.problem.known_constraint is not None:
            feasible *= self.problem.known_constraint.holds(indices)
        known = None
        if self.problem.known_objective is not None:
            known = self.problem.known_values(indices)
        return Posterior(indices, predictions, feasible, known)

    def sample(self, name: str, indices: Indices, rng: np.random.Generator, count: int) -> Floats:
        """Draw one target of some configurations jointly, on its model's scale, ``[count, n]``."""
        features = self.problem.space.features(indices)
        return self.surrogates[name].sample(features, rng, count)

    def in_units(self, posterior: Posterior) -> list[dict[str, float]]:
        """Return the prediction of each configuration in the units of the study, to be recorded.

        The keys are ``objective 0``, ``objective 0 deviation``, ``constraint <name>`` and so on,
        and ``feasible``, the probability that all constraints hold.
        """
        columns: dict[str, Floats] = {}
        for name, prediction in posterior.predictions.items():
            surrogate = self.surrogates[name]
            low = surrogate.unwarp(prediction.mean - prediction.deviation)
            high = surrogate.unwarp(prediction.mean + prediction.deviation)
            sign = 1.0
            if name.startswith("objective"):
                sign = self.problem.signs[int(name.split()[1])]
            columns[name] = sign * surrogate.unwarp(prediction.mean)
            columns[f"{name} deviation"] = (high - low) / 2
        if self.problem.constraints:
            columns["feasible"] = posterior.feasible
        rows = zip(*(c.tolist() for c in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]


@dataclass(frozen=True)
class Posterior:
    """Predictions of all targets of some configurations.

    Args:
        indices:
            Configurations, ``[n, parameters]``.
        predictions:
            Predictions by the name of the target, on the scale of its model.
        feasible:
            Probability that all constraints hold, ``[n]``.
        known:
            Values of the objective that is computed, if there is one, ``[n]``.
    """

    indices: Indices
    predictions: dict[str, Prediction]
    feasible: Floats
    known: Floats | None

    def objective(self, problem: Problem, position: int) -> Floats:
        """Mean of one objective, on the scale of its model, ``[n]``."""
        if position == problem.known_objective:
            assert self.known is not None
            return self.known
        return self.predictions[f"objective {position}"].mean

    def subset(self, rows: Indices) -> Posterior:
        """Return the posterior of some of the configurations."""
        return Posterior(
            self.indices[rows],
            {n: Prediction(p.mean[rows], p.deviation[rows]) for n, p in self.predictions.items()},
            self.feasible[rows],
            None if self.known is None else self.known[rows],
        )
