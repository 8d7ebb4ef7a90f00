"""The default cost model: a Gaussian process that may lean on boosted trees.

Trees are ahead where the cost has cliffs, a process where it is smooth. Which of them a study
needs, its own measurements tell: a second process gets the boosted prediction as one more feature,
and the two processes are weighted by how well each predicts the measurements that it is not shown.

Reference:
    Wolpert (1992), "Stacked Generalization", for a model that learns from the predictions of
    another for measurements that the other has not seen; Yao et al. (2018), "Using Stacking to
    Average Bayesian Predictive Distributions", for the weights.
"""

from __future__ import annotations

import numpy as np

from sgquant_optuna.sampler.boosted_bag import BoostedBag
from sgquant_optuna.sampler.gaussian_process import GaussianProcess, Prediction, limited_rows
from sgquant_optuna.sampler.space import Features, Flags, Floats

_WEIGHTS = np.linspace(0, 1, 101)[:-1]
_SPAN = 4.0  # deviations of the targets that are as far apart as the ends of a feature


class Blend:
    """Two Gaussian processes, one of which sees the prediction of boosted trees.

    Args:
        features:
            Features, ``[n, columns]``, n > 0.
        values:
            Finite targets, ``[n]``.
        counts:
            Number of measurements whose mean each target is, ``[n]``.
        seed:
            Seed of the trees and of the choice of rows.
        ordered:
            Whether the target may be monotone in each feature, ``[columns]``.
    """

    def __init__(
        self, features: Features, values: Floats, counts: Floats, *, seed: int, ordered: Flags
    ) -> None:
        """Fit the trees, both processes and the weight."""
        rows = limited_rows(values, np.random.default_rng(seed))
        features, values, counts = features[rows], values[rows], counts[rows]
        self._plain = GaussianProcess(features, values, counts, seed=seed)
        self._trees = BoostedBag(features, values, counts, seed=seed, ordered=ordered)
        self._unit = _SPAN * max(float(values.std()), 1e-12)
        # Of its own targets a tree knows too much, so the process learns from the others' trees.
        guided = np.column_stack([features, self._trees.left_out / self._unit])
        start = np.insert(self._plain.hyperparameters, features.shape[1], 0.0)
        self._guided = GaussianProcess(guided, values, counts, seed=seed, start=start)
        self.guided_weight = _stacked(
            self._plain.left_out_densities(), self._guided.left_out_densities()
        )
        """Weight of the process that sees the boosted prediction, in [0, 1)."""
        self.noise_deviation = (
            1 - self.guided_weight
        ) * self._plain.noise_deviation + self.guided_weight * self._guided.noise_deviation
        """Learned standard deviation of one measurement, in the unit of the target."""

    def predict(self, features: Features) -> Prediction:
        """Predict the target of configurations, by the moments of the mixture."""
        plain, weight = self._plain.predict(features), self.guided_weight
        if weight == 0:
            return plain
        guided = self._guided.predict(self._with_boosted(features))
        mean = (1 - weight) * plain.mean + weight * guided.mean
        variance = (1 - weight) * (plain.deviation**2 + (plain.mean - mean) ** 2)
        variance += weight * (guided.deviation**2 + (guided.mean - mean) ** 2)
        return Prediction(mean, np.sqrt(variance))

    def sample(self, features: Features, rng: np.random.Generator, count: int) -> Floats:
        """Draw the targets of configurations jointly, each from one process, ``[count, n]``."""
        guided = round(self.guided_weight * count)
        draws = self._plain.sample(features, rng, count - guided)
        if guided:
            more = self._guided.sample(self._with_boosted(features), rng, guided)
            draws = np.concatenate([draws, more])
        return draws

    def _with_boosted(self, features: Features) -> Features:
        return np.column_stack([features, self._trees.mean(features) / self._unit])


def _stacked(first: Floats, second: Floats) -> float:
    """Weight of the second of two models that predict left-out measurements best together.

    One more measurement, which only the first explains, keeps the weight at 0 where both are as
    good.

    Args:
        first:
            Logarithms of the predictive densities of one model, ``[n]``.
        second:
            The same of another model, ``[n]``.

    Reference:
        Yao et al. (2018), equation 3.
    """
    top = np.maximum(first, second)
    densities = np.outer(1 - _WEIGHTS, np.exp(first - top)) + np.outer(
        _WEIGHTS, np.exp(second - top)
    )
    with np.errstate(divide="ignore"):
        score = np.log(densities).sum(axis=1) + np.log(1 - _WEIGHTS)
    return float(_WEIGHTS[int(np.argmax(score))])
