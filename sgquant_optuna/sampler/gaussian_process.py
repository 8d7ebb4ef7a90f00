"""A small Gaussian process, fitted in milliseconds: a cost model, and two parts of the default.

It was chosen by measurement: on the synthetic problems of the benchmarks, its gap to the optimum
after 50 trials is smaller than that of randomized trees, and it is three times faster
(docs/sampler-results.md).

Reference:
    Rasmussen and Williams (2006), "Gaussian Processes for Machine Learning", cited as R&W.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.linalg.blas import dsymv
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize

from sgquant_optuna.sampler.space import Features, Floats, Indices

_HYPER_ROWS = 120  # rows to learn the length scales from: the cost grows with the cube
_MAX_ROWS = 400
_MAX_ITERATIONS = 30
_MAX_ITERATIONS_FROM_START = 10  # those of a similar process are near already
_JITTER = 1e-8
_SQRT5 = 5.0**0.5

# Log-normal priors (mean, standard deviation of the logarithm) of the inverse squared length
# scales, the signal variance and the noise variance, for features in [0, 1] and unit targets. The
# noise prior is wide: studies range from deterministic tables to accuracies of 100 nodes.
_WEIGHT_PRIOR = (np.log(0.5), 1.3)
_SIGNAL_PRIOR = (0.0, 1.0)
_NOISE_PRIOR = (np.log(1e-3), 2.5)
_BOUNDS = {"weight": (-6.0, 5.0), "signal": (-4.0, 4.0), "noise": (np.log(1e-6), 0.5)}


class Prediction(NamedTuple):
    """Predicted distribution of the target of some configurations.

    Args:
        mean:
            Expected target, ``[n]``.
        deviation:
            Standard deviation of the target itself, without measurement noise, ``[n]``.
    """

    mean: Floats
    deviation: Floats


class GaussianProcess:
    """Gaussian process with a Matern 5/2 kernel and one length scale for each feature.

    The length scales, the signal variance and the noise variance maximise the posterior density.
    Beyond 400 rows the process is fitted on a part of them: those with the lowest targets, where
    the optimum is, and a random choice of the others.

    Args:
        features:
            Features, ``[n, columns]``, n > 0.
        values:
            Finite targets, ``[n]``.
        counts:
            Number of measurements whose mean each target is, ``[n]``.
        seed:
            Seed of the choice of rows.
        start:
            Hyperparameters to begin the search with, ``[columns + 2]``, as in
            ``hyperparameters``.

    Reference:
        R&W, section 2.2 for the regression, section 5.1 for a length scale for each feature.
    """

    def __init__(
        self,
        features: Features,
        values: Floats,
        counts: Floats,
        *,
        seed: int,
        start: Floats | None = None,
    ) -> None:
        """Fit the model."""
        rng = np.random.default_rng(seed)
        rows = limited_rows(values, rng)
        features, values, counts = features[rows], values[rows], counts[rows]
        self._mean = float(values.mean())
        self._unit = max(float(values.std()), 1e-12)
        scaled = (values - self._mean) / self._unit
        rows = np.arange(len(values))
        if len(values) > _HYPER_ROWS:
            rows = rng.choice(rows, _HYPER_ROWS, replace=False)
        theta = _fit_hyperparameters(features[rows], scaled[rows], counts[rows], start)
        self.hyperparameters = theta
        """Logarithms of the inverse squared length scales, the signal and the noise variance."""
        self._weights, self._signal, noise = (
            np.exp(theta[:-2]),
            np.exp(theta[-2]),
            np.exp(theta[-1]),
        )
        self._features = features
        covariance = self._kernel(features, features)
        # The mean of several measurements has the noise variance divided by their number.
        covariance[np.diag_indices(len(values))] += noise / counts + _JITTER
        self._cholesky = np.linalg.cholesky(covariance)
        self._alpha: Floats = cho_solve((self._cholesky, True), scaled)
        self.noise_deviation = float(self._unit * np.sqrt(noise))
        """Learned standard deviation of one measurement, in the unit of the target."""

    def predict(self, features: Features) -> Prediction:
        """Predict the target of configurations (R&W, equations 2.25 and 2.26)."""
        cross = self._kernel(self._features, features)
        explained = solve_triangular(self._cholesky, cross, lower=True, check_finite=False)
        variance = self._signal - np.sum(explained**2, axis=0)
        return Prediction(
            self._mean + self._unit * (cross.T @ self._alpha),
            self._unit * np.sqrt(np.maximum(variance, 1e-12)),
        )

    def sample(self, features: Features, rng: np.random.Generator, count: int) -> Floats:
        """Draw the targets of configurations jointly, ``[count, n]``.

        Reference:
            R&W, equation 2.24 for the covariance, section A.2 for draws by its Cholesky factor.
        """
        cross = self._kernel(self._features, features)
        explained = solve_triangular(self._cholesky, cross, lower=True, check_finite=False)
        covariance = self._kernel(features, features) - explained.T @ explained
        covariance[np.diag_indices(len(features))] += 1e-6
        root = np.linalg.cholesky(covariance)
        normal = rng.standard_normal((len(features), count))
        drawn: Floats = (cross.T @ self._alpha)[:, None] + root @ normal
        return self._mean + self._unit * drawn.T

    def left_out_densities(self) -> Floats:
        """Logarithm of the density of each measurement, predicted from the others, ``[n]``.

        The hyperparameters are those of all measurements.

        Reference:
            R&W, equations 5.10 to 5.12.
        """
        identity = np.eye(len(self._alpha))
        root = solve_triangular(self._cholesky, identity, lower=True, check_finite=False)
        variance = 1 / np.sum(root**2, axis=0)
        error = self._alpha * variance
        density = -0.5 * (np.log(2 * np.pi * variance) + error**2 / variance)
        return np.asarray(density - np.log(self._unit))

    def _kernel(self, a: Features, b: Features) -> Floats:
        root = np.sqrt(self._weights)
        a, b = a * root, b * root
        squared = np.sum(a * a, axis=1)[:, None] + np.sum(b * b, axis=1)[None] - 2 * a @ b.T
        kernel: Floats = self._signal * _matern(np.maximum(squared, 0))[0]
        return kernel


def limited_rows(values: Floats, rng: np.random.Generator) -> Indices:
    """Choose at most 400 measurements to learn from, if there are more.

    Args:
        values:
            Targets, ``[n]``.
        rng:
            Source of randomness.

    Returns:
        Positions of the lowest targets and of a random choice of the others, ascending.
    """
    if len(values) <= _MAX_ROWS:
        return np.arange(len(values))
    by_value = np.argsort(values, kind="stable")
    lowest, others = by_value[: _MAX_ROWS // 2], by_value[_MAX_ROWS // 2 :]
    rest = rng.choice(others, _MAX_ROWS - len(lowest), replace=False)
    return np.sort(np.concatenate([lowest, rest]))


def _matern(squared: Floats) -> tuple[Floats, Floats]:
    """Matern 5/2 correlation of squared distances, and its derivative by the squared distance.

    Reference:
        R&W, equation 4.17, with the length scale 1.
    """
    distance = np.sqrt(squared)
    decay = np.exp(-_SQRT5 * distance)
    return (
        (1 + _SQRT5 * distance + 5 / 3 * squared) * decay,
        -5 / 6 * (1 + _SQRT5 * distance) * decay,
    )


def _fit_hyperparameters(
    features: Features, values: Floats, counts: Floats, start: Floats | None
) -> Floats:
    """Logarithms of the weights of the columns, the signal variance and the noise variance."""
    columns = features.shape[1]
    iterations = _MAX_ITERATIONS if start is None else _MAX_ITERATIONS_FROM_START
    if start is None:
        start = np.array([0.0] * columns + [0.0, np.log(1e-2)])
    bounds = [_BOUNDS["weight"]] * columns + [_BOUNDS["signal"], _BOUNDS["noise"]]
    result = minimize(
        _NegativeLogPosterior(features, values, counts),
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": iterations},
    )
    theta: Floats = result.x
    return theta


class _NegativeLogPosterior:
    """Negative logarithm of the posterior density of the hyperparameters, and its gradient.

    All that is symmetric is computed and kept as its lower triangle, ``[rows * (rows + 1) / 2]``:
    that halves the time of a call, and a fit makes about thirty.
    """

    def __init__(self, features: Features, values: Floats, counts: Floats) -> None:
        rows, columns = features.shape
        self._row, self._column = np.tril_indices(rows)
        difference = features[self._row] - features[self._column]
        self._squared = np.ascontiguousarray((difference**2).T)
        self._diagonal = np.flatnonzero(self._row == self._column)
        # In a sum over the whole matrix, what is off the diagonal counts twice.
        self._times = np.where(self._row == self._column, 1.0, 2.0)
        self._values, self._counts = values, counts
        # LAPACK wants columns one after the other; the upper triangle is never read.
        self._covariance: Floats = np.zeros((rows, rows), order="F")
        priors = [_WEIGHT_PRIOR] * columns + [_SIGNAL_PRIOR, _NOISE_PRIOR]
        self._prior_mean, self._prior_deviation = np.array(priors).T.copy()

    def __call__(self, theta: Floats) -> tuple[float, Floats]:
        exponentials = np.exp(theta)
        weights, signal, noise = exponentials[:-2], exponentials[-2], exponentials[-1]
        kernel, slope = _matern(weights @ self._squared)
        covariance = signal * kernel
        covariance[self._diagonal] += noise / self._counts + _JITTER
        self._covariance[self._row, self._column] = covariance
        root, failed = dpotrf(self._covariance, lower=1, clean=0)
        if failed:  # the line search then shortens its step
            return 1e10, np.zeros_like(theta)
        log_determinant = 2 * np.log(root.diagonal()).sum()
        inverse, _ = dpotri(root, lower=1, overwrite_c=1)
        alpha = dsymv(1.0, inverse, self._values, lower=1)
        prior = (theta - self._prior_mean) / self._prior_deviation
        # R&W, equation 5.8 without its constant, plus the priors of the hyperparameters.
        value = 0.5 * (self._values @ alpha + log_determinant + prior @ prior)
        outer = inverse[self._row, self._column] - alpha[self._row] * alpha[self._column]
        outer *= 0.5 * self._times  # R&W, equation 5.9
        gradient = prior / self._prior_deviation
        gradient[:-2] += weights * (self._squared @ (outer * slope)) * signal
        gradient[-2] += signal * (outer @ kernel)
        gradient[-1] += noise * np.sum(outer[self._diagonal] / self._counts)
        return float(value), gradient
