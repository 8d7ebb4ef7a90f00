"""A cost model of one target, on a scale where the interesting region is wide."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import ndtr

from sgquant_optuna.sampler.gaussian_process import GaussianProcess, Prediction
from sgquant_optuna.sampler.problem import Target
from sgquant_optuna.sampler.space import Features, Floats

Prior = Callable[[Features], Floats]
"""Expected target of configurations from another study, in the target's unit."""

_FINE_SHARE = 0.25  # share of the measurements that stays on the linear part of the scale


class Surrogate:
    """Learns a target whose values span orders of magnitude, as accuracy drops do.

    Values are warped by ``asinh((value - origin) / unit)``: linear near the origin, logarithmic
    far away, so that drops of 30 points do not hide differences of 0.1 points. The origin of a
    constraint is its limit 0, that of an objective the best value.

    Args:
        target:
            What to learn.
        seed:
            Seed of the model.
        prior:
            Predictions of another study's model, used as the expectation before measurements: the
            model then learns the difference only.
    """

    def __init__(self, target: Target, *, seed: int, prior: Prior | None = None) -> None:
        """Fit the model."""
        self.name = target.name
        self._origin = 0.0 if target.name.startswith("constraint") else float(target.values.min())
        distance = np.abs(target.values - self._origin)
        unit = float(np.quantile(distance, _FINE_SHARE))
        self._unit = max(unit, 1e-3 * float(distance.mean()), 1e-12)
        self._prior = prior
        self._offset, self._slope = 0.0, 0.0
        warped = self.warp(target.values)
        if prior is not None:
            expected = self.warp(prior(target.features))
            self._offset, self._slope = _shrunken_line(expected, warped)
        warped = warped - self._expected(target.features)
        self._process = GaussianProcess(target.features, warped, target.counts, seed=seed)

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of one measurement near the origin, in the target's unit."""
        return self._process.noise_deviation * self._unit

    def warp(self, values: Floats) -> Floats:
        """Map values to the model's scale."""
        warped: Floats = np.arcsinh((values - self._origin) / self._unit)
        return warped

    def unwarp(self, warped: Floats) -> Floats:
        """Map the model's scale back to values."""
        values: Floats = self._origin + self._unit * np.sinh(np.clip(warped, -300, 300))
        return values

    def predict(self, features: Features) -> Prediction:
        """Predict on the model's scale."""
        prediction = self._process.predict(features)
        return Prediction(prediction.mean + self._expected(features), prediction.deviation)

    def sample(self, features: Features, rng: np.random.Generator, count: int) -> Floats:
        """Draw targets jointly on the model's scale, ``[count, n]``."""
        drawn: Floats = self._process.sample(features, rng, count) + self._expected(features)
        return drawn

    def _expected(self, features: Features) -> Floats:
        if self._prior is None:
            return np.zeros(len(features))
        expected: Floats = self._offset + self._slope * self.warp(self._prior(features))
        return expected


def probability_below(prediction: Prediction, threshold: float = 0.0) -> Floats:
    """Probability that the target itself, without noise, is not above a threshold."""
    probability: Floats = ndtr((threshold - prediction.mean) / prediction.deviation)
    return probability


def _shrunken_line(x: Floats, y: Floats) -> tuple[float, float]:
    """Fit ``y = offset + slope * x``, drawn towards offset 0 and slope 1 as by two data points."""
    design = np.stack([np.ones_like(x), x], axis=1)
    weight = 2 * np.diag([1.0, max(float(np.mean(x**2)), 1e-12)])
    offset, slope = np.linalg.solve(design.T @ design + weight, design.T @ y + weight @ [0.0, 1.0])
    return float(offset), max(float(slope), 0.0)
