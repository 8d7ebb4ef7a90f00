"""What a cost model is: one of ours by its name, or a user's own object.

Ours also know which features are ordered and which measurements are repeated; all of that is
behind :func:`fit_cost_model`, so that a surrogate treats every model alike.
"""

from __future__ import annotations

from inspect import signature
from typing import Literal, Protocol, get_args

import numpy as np

from sgquant_optuna.sampler.blend import Blend
from sgquant_optuna.sampler.boosted_bag import BoostedBag
from sgquant_optuna.sampler.gaussian_process import GaussianProcess, Prediction
from sgquant_optuna.sampler.space import Features, Flags, Floats

CostModelName = Literal["blend", "gaussian_process", "boosted"]
"""Cost models of this package; the first is the default."""

DEFAULT_COST_MODEL: CostModelName = "blend"

_MIN_DEVIATION = 1e-9  # of the targets' own, so that a certain model divides by no zero


class FittedCostModel(Protocol):
    """A cost model that has learned one target.

    It may also have ``sample(features, rng, count)``, which returns joint draws ``[count, n]``
    from the NumPy generator ``rng``. Without it, the targets of different configurations are drawn
    independently from normal distributions, and a batch is less diverse.
    """

    def predict(self, features: Features) -> tuple[Floats, Floats]:
        """Predict the target of configurations.

        Args:
            features:
                Features of configurations, ``[n, columns]``, as in :meth:`CostModel.fit`.

        Returns:
            Mean and standard deviation of the target itself, without measurement noise, ``[n]``
            each, in the unit of the targets.
        """


class CostModel(Protocol):
    """A regression with uncertainty, for the argument ``cost_model`` of the sampler.

    ``fit`` must not depend on earlier calls or on a global random state: every worker of a round
    fits the same measurements and has to come to the same choices.
    """

    def fit(
        self, features: Features, targets: Floats, *, counts: Floats, seed: int
    ) -> FittedCostModel:
        """Learn one target; called for each target of each round.

        Args:
            features:
                Configurations, ``[n, columns]``, n > 0. A parameter whose values are ascending
                numbers, as bit widths are, is one column in [0, 1], log2 where all are positive.
                Any other parameter has a column of 0 and 1 for each value.
            targets:
                Means of the measurements, ``[n]``, on the warped scale ``asinh(value / unit)``:
                about 1 in size, and 0 at the limit of a constraint. Lower is better.
            counts:
                Number of measurements of each configuration, ``[n]``.
            seed:
                Seed, 0 or more and below 2**31, for all that is random.

        Returns:
            A new object; the one before it may still be in use.
        """


class Regression(Protocol):
    """A fitted model as a surrogate uses it."""

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of one measurement; 0 if the model does not learn it."""

    def predict(self, features: Features) -> Prediction:
        """Predict the target of configurations."""

    def sample(self, features: Features, rng: np.random.Generator, count: int) -> Floats:
        """Draw the targets of configurations jointly, ``[count, n]``."""


def check_cost_model(cost_model: CostModelName | CostModel) -> CostModelName | CostModel:
    """Return a cost model, or raise for what is none.

    An object is tried on eight made-up measurements, because a mistake in it would otherwise show
    as random rounds.

    Raises:
        ValueError:
            If there is no cost model of this name, or an object predicts other shapes.
        TypeError:
            If an object has no such methods.
    """
    if isinstance(cost_model, str):
        if cost_model not in get_args(CostModelName):
            names = ", ".join(map(repr, get_args(CostModelName)))
            raise ValueError(f"cost_model: expected one of {names}, got {cost_model!r}")
        return cost_model
    features, targets = np.eye(8)[:, :2], np.linspace(-1.0, 1.0, 8)
    try:
        signature(cost_model.fit).bind(features, targets, counts=np.ones(8), seed=0)
    except (AttributeError, TypeError) as error:
        raise TypeError(
            f"cost_model: expected a name or an object with a method "
            f"fit(features, targets, *, counts, seed), got {cost_model!r}"
        ) from error
    fitted = _OfUser(cost_model.fit(features, targets, counts=np.ones(8), seed=0))
    fitted.sample(features, np.random.default_rng(0), 2)
    fitted.predict(features)
    return cost_model


def fit_cost_model(
    cost_model: CostModelName | CostModel,
    features: Features,
    targets: Floats,
    counts: Floats,
    *,
    seed: int,
    ordered: Flags,
) -> Regression:
    """Fit a cost model to one target.

    Args:
        cost_model:
            Name of a model of this package, or a user's model.
        features:
            Features, ``[n, columns]``, n > 0.
        targets:
            Finite targets, ``[n]``.
        counts:
            Number of measurements whose mean each target is, ``[n]``.
        seed:
            Seed of the model.
        ordered:
            Whether a feature is an ordered parameter, ``[columns]``.

    Raises:
        TypeError:
            If what a user's model returns has no method ``predict``.
    """
    if cost_model == "blend":
        return Blend(features, targets, counts, seed=seed, ordered=ordered)
    if cost_model == "boosted":
        return BoostedBag(features, targets, counts, seed=seed, ordered=ordered)
    if isinstance(cost_model, str):
        return GaussianProcess(features, targets, counts, seed=seed)
    return _OfUser(cost_model.fit(features, targets, counts=counts, seed=seed))


class _OfUser:
    """A user's fitted model, whose answers are checked, with joint draws if it has none."""

    noise_deviation = 0.0

    def __init__(self, fitted: FittedCostModel) -> None:
        if not callable(getattr(fitted, "predict", None)):
            raise TypeError(
                f"cost_model: expected fit to return an object with a method predict(features), "
                f"got {fitted!r}"
            )
        self._fitted = fitted

    def predict(self, features: Features) -> Prediction:
        mean, deviation = self._fitted.predict(features)
        shape = (len(features),)
        deviation = _checked(deviation, shape, what="predicted deviations")
        return Prediction(
            _checked(mean, shape, what="predicted means"), np.maximum(deviation, _MIN_DEVIATION)
        )

    def sample(self, features: Features, rng: np.random.Generator, count: int) -> Floats:
        shape = (count, len(features))
        sample = getattr(self._fitted, "sample", None)
        if sample is not None:
            return _checked(sample(features, rng, count), shape, what="joint draws")
        prediction = self.predict(features)
        drawn: Floats = prediction.mean + prediction.deviation * rng.standard_normal(shape)
        return drawn


def _checked(values: Floats, shape: tuple[int, ...], *, what: str) -> Floats:
    array: Floats = np.asarray(values, dtype=np.float64)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(
            f"cost_model: expected {what} that are finite and of shape {shape}, got {values!r}"
        )
    return array
