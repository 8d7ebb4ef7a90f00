"""The paper's cost model: gradient-boosted regression trees."""

from __future__ import annotations

from typing import Any

from sgquant_optuna.sampler.problem import Target
from sgquant_optuna.sampler.space import Features, Floats


class BoostedTrees:
    """Gradient-boosted trees over the features of the grid.

    Args:
        target:
            Target to learn.
        seed:
            Seed of the fit.

    Reference:
        SGQuant, "Auto-bit Selection", step 2.
    """

    def __init__(self, target: Target, *, seed: int) -> None:
        """Fit the trees."""
        # Imported here because it takes about a second: a study that is only read, or that is
        # still in its random round, does not need it.
        from sklearn.ensemble import GradientBoostingRegressor

        self._trees: Any = GradientBoostingRegressor(random_state=seed)
        self._trees.fit(target.features, target.values, sample_weight=target.counts)

    def predict(self, features: Features) -> Floats:
        """Predict the target of configurations, ``[n]``."""
        prediction: Floats = self._trees.predict(features)
        return prediction
