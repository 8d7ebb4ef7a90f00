"""Everything that the cost models of one round believe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sgquant_optuna.sampler.gaussian_process import Prediction
from sgquant_optuna.sampler.problem import Problem
from sgquant_optuna.sampler.space import Floats, Indices
from sgquant_optuna.sampler.surrogate import Prior, Surrogate, probability_below


class Beliefs:
    """The cost models of one round.

    Args:
        problem:
            The measurements.
        seed:
            Seed of the models.
        priors:
            Predictions of other studies' models by target name.
    """

    def __init__(
        self, problem: Problem, *, seed: int, priors: Mapping[str, Prior] | None = None
    ) -> None:
        """Fit one model for each target."""
        self.problem = problem
        self.surrogates = {
            target.name: Surrogate(target, seed=seed, prior=(priors or {}).get(target.name))
            for target in problem.targets
        }

    def view(self, indices: Indices) -> View:
        """Predict everything about some configurations."""
        features = self.problem.space.features(indices)
        predictions = {name: s.predict(features) for name, s in self.surrogates.items()}
        feasible = np.ones(len(indices))
        for constraint in self.problem.constraints:
            feasible *= probability_below(predictions[constraint.name])
        known = None
        if self.problem.known_objective is not None:
            known = self.problem.known_values(indices)
        return View(indices, predictions, feasible, known)

    def notes(self, view: View) -> list[dict[str, float]]:
        """Predictions of each configuration in the study's own units, for the trial's reader."""
        columns: dict[str, Floats] = {}
        for name, prediction in view.predictions.items():
            surrogate = self.surrogates[name]
            low = surrogate.unwarp(prediction.mean - prediction.deviation)
            high = surrogate.unwarp(prediction.mean + prediction.deviation)
            sign = 1.0
            if name.startswith("objective"):
                sign = self.problem.signs[int(name.split()[1])]
            columns[name] = sign * surrogate.unwarp(prediction.mean)
            columns[f"{name} deviation"] = (high - low) / 2
        if self.problem.constraints:
            columns["feasible"] = view.feasible
        rows = zip(*(c.tolist() for c in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]


@dataclass(frozen=True)
class View:
    """Predictions of some configurations.

    Args:
        indices:
            The configurations, ``[n, parameters]``.
        predictions:
            By target, on the scale of its model.
        feasible:
            Probability that all constraints hold, ``[n]``.
        known:
            The objective that is computed, if there is one, ``[n]``.
    """

    indices: Indices
    predictions: dict[str, Prediction]
    feasible: Floats
    known: Floats | None

    def objective(self, problem: Problem, position: int) -> Floats:
        """Expected value of one objective, on the scale of its model, ``[n]``."""
        if position == problem.known_objective:
            assert self.known is not None
            return self.known
        return self.predictions[f"objective {position}"].mean

    def part(self, rows: Indices) -> View:
        """Return the view of some of the configurations."""
        return View(
            self.indices[rows],
            {n: Prediction(p.mean[rows], p.deviation[rows]) for n, p in self.predictions.items()},
            self.feasible[rows],
            None if self.known is None else self.known[rows],
        )
