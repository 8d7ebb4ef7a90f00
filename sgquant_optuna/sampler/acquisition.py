"""Acquisition functions: the expected improvement by a measurement, for each kind of study.

Every quantity is minimised. The members of a batch are chosen jointly: a candidate that improves
only where an earlier member of the batch improves adds nothing.

Reference:
    Jones, Schonlau and Welch (1998), "Efficient Global Optimization of Expensive Black-Box
    Functions", for the expected improvement; Gardner et al. (2014), "Bayesian Optimization with
    Inequality Constraints", for its product with the probability of feasibility; Emmerich et al.
    (2006), "Single- and Multiobjective Evolutionary Optimization Assisted by Gaussian Random Field
    Metamodels", for the expected hypervolume improvement; Knowles (2006), "ParEGO", for random
    scalarizations; Wilson et al. (2018), "Maximizing Acquisition Functions for Bayesian
    Optimization", for greedy batches over joint draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import ndtr

from sgquant_optuna.sampler.gaussian_process import Prediction
from sgquant_optuna.sampler.space import Floats, Indices
from sgquant_optuna.sampler.surrogate import CostModels, Posterior

_JOINT_DRAWS = 128
_MIN_PROMISING = 50
_LIKELY_FEASIBLE = 0.5  # probability of feasibility above which a measured configuration counts


def expected_improvement(prediction: Prediction, best: float | Floats) -> Floats:
    """Expected amount by which a target falls below ``best``, ``[n]``.

    Reference:
        Jones et al. (1998), equation 15.
    """
    z = (best - prediction.mean) / prediction.deviation
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    improvement: Floats = prediction.deviation * (z * ndtr(z) + density)
    return np.maximum(improvement, 0)


def greedy_batch(improvements: Floats, size: int, *, pending: int = 0) -> list[int]:
    """Choose candidates whose best member improves most, averaged over joint draws.

    Args:
        improvements:
            Improvement by each candidate in each joint draw, not negative, ``[draws, n]``.
        size:
            Largest number of candidates to choose.
        pending:
            Number of candidates, the first ones, that are being measured already.

    Returns:
        Positions, best first. There are fewer than ``size`` if no other candidate improves.
    """
    reached = improvements[:, :pending].max(axis=1, initial=0.0)
    chosen: list[int] = []
    while len(chosen) < min(size, improvements.shape[1]):
        added = np.maximum(improvements - reached[:, None], 0).mean(axis=0)
        position = int(np.argmax(added))
        if added[position] <= 0:
            break
        chosen.append(position)
        reached = np.maximum(reached, improvements[:, position])
    return chosen


@dataclass(frozen=True)
class ParetoFront:
    """The Pareto front of a known and a learned objective, as steps over the known one.

    Args:
        starts:
            Known objective at which each step starts, ascending; the first is minus infinity.
        heights:
            Learned objective that is reached on each step, descending.
        end:
            Reference point of the known objective.
    """

    starts: Floats
    heights: Floats
    end: float

    @classmethod
    def of_points(cls, known: Floats, learned: Floats, *, end: float, top: float) -> ParetoFront:
        """Build the front of some points; (``end``, ``top``) is the reference point."""
        order = np.lexsort((learned, known))
        starts, heights = [-np.inf], [top]
        for position in order:
            if learned[position] < heights[-1] and known[position] < end:
                starts.append(float(known[position]))
                heights.append(float(learned[position]))
        return cls(np.array(starts), np.array(heights), end)

    def with_point(self, known: float, learned: float) -> ParetoFront:
        """Return the front after one more measurement."""
        return ParetoFront.of_points(
            np.append(self.starts[1:], known),
            np.append(self.heights[1:], learned),
            end=self.end,
            top=float(self.heights[0]),
        )

    def expected_improvement(self, known: Floats, prediction: Prediction) -> Floats:
        """Expected hypervolume that each candidate adds, ``[n]``.

        Over a step of width w and height h, a candidate to the left of it with the target f adds
        ``w * max(h - f, 0)``, so the expectation is a sum of expected improvements.
        """
        ends = np.append(self.starts[1:], self.end)
        improvement = np.zeros(len(known))
        for start, end, height in zip(self.starts, ends, self.heights, strict=True):
            width = np.maximum(end - np.maximum(known, start), 0)
            improvement += width * expected_improvement(prediction, height)
        return improvement


class AcquisitionFunction(Protocol):
    """Scores candidates by the improvement on what was measured."""

    def best_measured(self) -> Indices:
        """Positions of the measured configurations, best first."""

    def promising(self, pool: Indices) -> Indices:
        """Drop candidates that cannot improve, before the models predict them; never all."""

    def score(self, candidates: Posterior) -> Floats:
        """Expected improvement by each candidate alone, ``[n]``."""

    def gain(self, candidates: Posterior) -> Floats | None:
        """Expected improvement by each as a share of the best known, ``[n]``, where it is told."""

    def batch(
        self, candidates: Posterior, size: int, rng: np.random.Generator, *, pending: int
    ) -> list[int]:
        """Positions of at most ``size`` candidates that improve together, best first.

        The first ``pending`` candidates are being measured already: the others should improve on
        what those may reach.
        """


def acquisition_function(models: CostModels, measured: Posterior) -> AcquisitionFunction:
    """Return the acquisition function for the objectives of the study.

    Args:
        models:
            Cost models of the round.
        measured:
            Posterior of the measured configurations.

    Returns:
        The acquisition function.
    """
    problem = models.problem
    if len(problem.signs) == 1:
        if problem.known_objective == 0:
            return _KnownObjectiveImprovement(models, measured)
        return _ExpectedImprovement(models, measured)
    if len(problem.signs) == 2 and problem.known_objective is not None:
        return _HypervolumeImprovement(models, measured)
    return _ScalarizedImprovement(models, measured)


class _KnownObjectiveImprovement:
    """One known objective: its improvement times the probability of feasibility."""

    def __init__(self, models: CostModels, measured: Posterior) -> None:
        assert measured.known is not None
        self._models, self._measured = models, measured
        known = measured.known[measured.feasible >= _LIKELY_FEASIBLE]
        self._has_feasible = len(known) > 0
        # Without a feasible configuration, anything below the largest value is an improvement.
        self._best = float(known.min() if len(known) else measured.known.max() * (1 + 1e-9))

    def best_measured(self) -> Indices:
        assert self._measured.known is not None
        return _feasible_first(self._measured.known, self._measured.feasible)

    def promising(self, pool: Indices) -> Indices:
        is_better = self._models.problem.known_values(pool) < self._best
        return pool[is_better] if np.count_nonzero(is_better) >= _MIN_PROMISING else pool

    def score(self, candidates: Posterior) -> Floats:
        improvement = self._improvement(candidates)
        # Those without an improvement come last, in order of their feasibility.
        return np.where(
            improvement > 0, improvement * candidates.feasible, candidates.feasible - 2
        )

    def batch(
        self, candidates: Posterior, size: int, rng: np.random.Generator, *, pending: int
    ) -> list[int]:
        feasible = _feasible_draws(self._models, candidates, rng)
        return greedy_batch(self._improvement(candidates) * feasible, size, pending=pending)

    def gain(self, candidates: Posterior) -> Floats | None:
        if not self._has_feasible or not self._best:
            return None
        return self._improvement(candidates) * candidates.feasible / abs(self._best)

    def _improvement(self, candidates: Posterior) -> Floats:
        assert candidates.known is not None
        return np.maximum(self._best - candidates.known, 0)


class _ExpectedImprovement:
    """One learned objective: its expected improvement times the probability of feasibility."""

    _LEARNED = "objective 0"

    def __init__(self, models: CostModels, measured: Posterior) -> None:
        self._models, self._measured = models, measured
        self._mean = measured.objective(models.problem, 0)
        mean = self._mean[measured.feasible >= _LIKELY_FEASIBLE]
        self._best = float(mean.min() if len(mean) else self._mean.max())

    def best_measured(self) -> Indices:
        return _feasible_first(self._mean, self._measured.feasible)

    def promising(self, pool: Indices) -> Indices:
        return pool

    def score(self, candidates: Posterior) -> Floats:
        prediction = candidates.predictions[self._LEARNED]
        return expected_improvement(prediction, self._best) * candidates.feasible

    def batch(
        self, candidates: Posterior, size: int, rng: np.random.Generator, *, pending: int
    ) -> list[int]:
        drawn = self._models.sample(self._LEARNED, candidates.indices, rng, _JOINT_DRAWS)
        improvement = np.maximum(self._best - drawn, 0)
        feasible = _feasible_draws(self._models, candidates, rng)
        return greedy_batch(improvement * feasible, size, pending=pending)

    def gain(self, candidates: Posterior) -> Floats | None:
        return None  # of what the study asks for, only the warped scale of the model is known


class _HypervolumeImprovement:
    """Two objectives of which one is known: the expected hypervolume improvement."""

    def __init__(self, models: CostModels, measured: Posterior) -> None:
        problem = models.problem
        assert measured.known is not None
        assert problem.known_objective is not None
        self._learned = f"objective {1 - problem.known_objective}"
        learned = measured.predictions[self._learned].mean
        feasible = measured.feasible >= _LIKELY_FEASIBLE
        self._front = ParetoFront.of_points(
            measured.known[feasible],
            learned[feasible],
            end=float(measured.known.max() + 0.1 * np.ptp(measured.known)),
            top=float(learned.max() + 0.1 * np.ptp(learned)),
        )
        self._dominators = np.array(
            [
                np.count_nonzero((measured.known < k) & (learned < f) & feasible) + (not is_likely)
                for k, f, is_likely in zip(measured.known, learned, feasible, strict=True)
            ]
        )

    def best_measured(self) -> Indices:
        # The whole front comes first, so that no part of it is without neighbours.
        return np.argsort(self._dominators, kind="stable")

    def promising(self, pool: Indices) -> Indices:
        return pool

    def score(self, candidates: Posterior) -> Floats:
        return self._score(self._front, candidates)

    def batch(
        self, candidates: Posterior, size: int, rng: np.random.Generator, *, pending: int
    ) -> list[int]:
        del rng
        assert candidates.known is not None
        mean, front = candidates.predictions[self._learned].mean, self._front
        for running in range(pending):
            front = front.with_point(float(candidates.known[running]), float(mean[running]))
        chosen: list[int] = []
        while len(chosen) < min(size, len(candidates.indices) - pending):
            score = self._score(front, candidates)
            score[[*range(pending), *chosen]] = -np.inf
            best = int(np.argmax(score))
            if score[best] <= 0:
                break
            chosen.append(best)
            front = front.with_point(float(candidates.known[best]), float(mean[best]))
        return chosen

    def gain(self, candidates: Posterior) -> Floats | None:
        return None

    def _score(self, front: ParetoFront, candidates: Posterior) -> Floats:
        assert candidates.known is not None
        prediction = candidates.predictions[self._learned]
        return front.expected_improvement(candidates.known, prediction) * candidates.feasible


class _ScalarizedImprovement:
    """Any other objectives: the expected improvement of random scalarizations."""

    _DRAWS = 16
    _WEIGHTS = 20
    _SUM_WEIGHT = 0.05  # rho of Knowles (2006)

    def __init__(self, models: CostModels, measured: Posterior) -> None:
        self._problem = models.problem
        self._measured = measured
        feasible = measured.feasible >= _LIKELY_FEASIBLE
        if not feasible.any():
            feasible[:] = True
        means = self._means(measured)
        self._low, self._span = means.min(axis=1), np.maximum(np.ptp(means, axis=1), 1e-12)
        rng = np.random.default_rng(len(measured.indices))
        self._weights = rng.dirichlet(np.ones(len(means)), size=self._WEIGHTS)
        self._noise = rng.standard_normal((self._DRAWS, len(means)))
        self._best = self._scalars(means)[:, feasible].min(axis=1)

    def best_measured(self) -> Indices:
        scalars = self._scalars(self._means(self._measured))
        return np.argsort((scalars - self._best[:, None]).min(axis=0), kind="stable")

    def promising(self, pool: Indices) -> Indices:
        return pool

    def score(self, candidates: Posterior) -> Floats:
        score: Floats = self._improvements(candidates).mean(axis=0)
        return score

    def batch(
        self, candidates: Posterior, size: int, rng: np.random.Generator, *, pending: int
    ) -> list[int]:
        del rng
        improvements = self._improvements(candidates)
        chosen: list[int] = []
        for weight in range(pending, min(pending + size, len(candidates.indices))):
            row = improvements[weight % self._WEIGHTS].copy()
            row[[*range(pending), *chosen]] = -1
            chosen.append(int(np.argmax(row)))
        return chosen

    def gain(self, candidates: Posterior) -> Floats | None:
        return None

    def _improvements(self, candidates: Posterior) -> Floats:
        """Expected improvement of each scalarization, ``[weights, n]``."""
        means = self._means(candidates)
        total = np.zeros((self._WEIGHTS, len(candidates.indices)))
        deviations = np.zeros_like(means)
        for j in range(len(means)):
            if j != self._problem.known_objective:
                deviations[j] = candidates.predictions[f"objective {j}"].deviation
        for noise in self._noise:
            scalars = self._scalars(means + noise[:, None] * deviations)
            total += np.maximum(self._best[:, None] - scalars, 0)
        return total * candidates.feasible / self._DRAWS

    def _means(self, posterior: Posterior) -> Floats:
        return np.stack(
            [posterior.objective(self._problem, j) for j in range(len(self._problem.signs))]
        )

    def _scalars(self, objectives: Floats) -> Floats:
        """Augmented Tchebycheff function of every weighting (Knowles 2006), ``[weights, n]``."""
        unit = (objectives - self._low[:, None]) / self._span[:, None]
        weighted = self._weights[:, :, None] * unit[None]
        scalars: Floats = weighted.max(axis=1) + self._SUM_WEIGHT * weighted.sum(axis=1)
        return scalars


def _feasible_draws(models: CostModels, candidates: Posterior, rng: np.random.Generator) -> Floats:
    """1 where all constraints hold in a joint draw, else 0, ``[draws, n]``."""
    feasible = np.ones((_JOINT_DRAWS, len(candidates.indices)))
    for constraint in models.problem.constraints:
        drawn = models.sample(constraint.name, candidates.indices, rng, _JOINT_DRAWS)
        feasible *= drawn <= 0
    return feasible


def _feasible_first(cost: Floats, feasible: Floats) -> Indices:
    """Order the likely feasible by cost, then the others by their probability of feasibility."""
    is_likely = feasible >= _LIKELY_FEASIBLE
    return np.lexsort((cost, np.where(is_likely, 0, -feasible), ~is_likely))
