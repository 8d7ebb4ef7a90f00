"""What measuring a candidate is expected to gain, for each kind of study."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sgquant_optuna.sampler.acquisition import Staircase, expected_improvement, greedy_batch
from sgquant_optuna.sampler.beliefs import Beliefs, View
from sgquant_optuna.sampler.space import Floats, Indices

_JOINT_DRAWS = 128
_MIN_PROMISING = 50
_TRUSTED = 0.5  # probability of being feasible from which a measured configuration counts


class Gain(Protocol):
    """Scores candidates against what was measured."""

    def best_measured(self) -> Indices:
        """Positions of the measured configurations, best first."""

    def promising(self, pool: Indices) -> Indices:
        """Drop candidates that cannot gain anything, before models are asked; never all."""

    def score(self, view: View) -> Floats:
        """Expected gain of each candidate on its own, ``[n]``."""

    def batch(self, view: View, size: int, rng: np.random.Generator) -> list[int]:
        """Positions of candidates that gain together, best first; at most ``size``."""


def gain_over(beliefs: Beliefs, measured: View) -> Gain:
    """Return the gain that fits the study's objectives."""
    problem = beliefs.problem
    if len(problem.signs) == 1:
        return (_Saving if problem.known_objective == 0 else _Improvement)(beliefs, measured)
    if len(problem.signs) == 2 and problem.known_objective is not None:
        return _Hypervolume(beliefs, measured)
    return _Scalarised(beliefs, measured)


class _Saving:
    """One objective that is known exactly: its saving times the probability to be feasible."""

    def __init__(self, beliefs: Beliefs, measured: View) -> None:
        assert measured.known is not None
        self._beliefs, self._measured = beliefs, measured
        self._trusted = measured.feasible >= _TRUSTED
        known = measured.known[self._trusted]
        # Without a feasible configuration any saving against the largest one is welcome.
        self._best = float(known.min() if len(known) else measured.known.max() * (1 + 1e-9))

    def best_measured(self) -> Indices:
        assert self._measured.known is not None
        return _feasible_first(self._measured.known, self._measured.feasible)

    def promising(self, pool: Indices) -> Indices:
        smaller = self._beliefs.problem.known_values(pool) < self._best
        return pool[smaller] if np.count_nonzero(smaller) >= _MIN_PROMISING else pool

    def score(self, view: View) -> Floats:
        assert view.known is not None
        saving = np.maximum(self._best - view.known, 0)
        return np.where(saving > 0, saving * view.feasible, view.feasible - 2)

    def batch(self, view: View, size: int, rng: np.random.Generator) -> list[int]:
        assert view.known is not None
        saving = np.maximum(self._best - view.known, 0)
        return greedy_batch(saving * _feasible_draws(self._beliefs, view, rng), size)


class _Improvement:
    """One learned objective: its expected improvement times the probability to be feasible."""

    def __init__(self, beliefs: Beliefs, measured: View) -> None:
        self._beliefs, self._measured = beliefs, measured
        self._trusted = measured.feasible >= _TRUSTED
        self._mean = measured.objective(beliefs.problem, 0)
        mean = self._mean[self._trusted]
        self._best = float(mean.min() if len(mean) else self._mean.max())

    def best_measured(self) -> Indices:
        return _feasible_first(self._mean, self._measured.feasible)

    def promising(self, pool: Indices) -> Indices:
        return pool

    def score(self, view: View) -> Floats:
        prediction = view.predictions["objective 0"]
        return expected_improvement(prediction, self._best) * view.feasible

    def batch(self, view: View, size: int, rng: np.random.Generator) -> list[int]:
        features = self._beliefs.problem.space.features(view.indices)
        drawn = self._beliefs.surrogates["objective 0"].sample(features, rng, _JOINT_DRAWS)
        improvement = np.maximum(self._best - drawn, 0)
        return greedy_batch(improvement * _feasible_draws(self._beliefs, view, rng), size)


class _Hypervolume:
    """Two objectives of which one is known exactly: the expected gain of hypervolume."""

    def __init__(self, beliefs: Beliefs, measured: View) -> None:
        problem = beliefs.problem
        assert measured.known is not None
        assert problem.known_objective is not None
        self._learned = f"objective {1 - problem.known_objective}"
        learned = measured.predictions[self._learned].mean
        trusted = measured.feasible >= _TRUSTED
        self._front = Staircase.over(
            measured.known[trusted],
            learned[trusted],
            end=float(measured.known.max() + 0.1 * np.ptp(measured.known)),
            top=float(learned.max() + 0.1 * np.ptp(learned)),
        )
        self._dominators = np.array(
            [
                np.count_nonzero((measured.known < k) & (learned < f) & trusted) + (not t)
                for k, f, t in zip(measured.known, learned, trusted, strict=True)
            ]
        )

    def best_measured(self) -> Indices:
        # All of the front are parents, so that no part of it is left out.
        return np.argsort(self._dominators, kind="stable")

    def promising(self, pool: Indices) -> Indices:
        return pool

    def score(self, view: View) -> Floats:
        return self._score(self._front, view)

    def batch(self, view: View, size: int, rng: np.random.Generator) -> list[int]:
        del rng
        assert view.known is not None
        mean, front = view.predictions[self._learned].mean, self._front
        chosen: list[int] = []
        while len(chosen) < min(size, len(view.indices)):
            score = self._score(front, view)
            score[chosen] = -np.inf
            best = int(np.argmax(score))
            if score[best] <= 0:
                break
            chosen.append(best)
            front = front.with_point(float(view.known[best]), float(mean[best]))
        return chosen

    def _score(self, front: Staircase, view: View) -> Floats:
        assert view.known is not None
        gain: Floats = front.expected_gain(view.known, view.predictions[self._learned])
        return gain * view.feasible


class _Scalarised:
    """Any other objectives: improvement of many weightings of the worst and the sum (ParEGO)."""

    _DRAWS = 16
    _WEIGHTS = 20

    def __init__(self, beliefs: Beliefs, measured: View) -> None:
        self._problem = beliefs.problem
        self._measured = measured
        self._trusted = measured.feasible >= _TRUSTED
        if not self._trusted.any():
            self._trusted[:] = True
        means = self._means(measured)
        self._low, self._span = means.min(axis=1), np.maximum(np.ptp(means, axis=1), 1e-12)
        rng = np.random.default_rng(len(measured.indices))
        self._weights = rng.dirichlet(np.ones(len(means)), size=self._WEIGHTS)
        self._noise = rng.standard_normal((self._DRAWS, len(means)))
        reached = self._scalars(means)[:, self._trusted]
        self._best = reached.min(axis=1)

    def best_measured(self) -> Indices:
        scalars = self._scalars(self._means(self._measured))
        return np.argsort((scalars - self._best[:, None]).min(axis=0), kind="stable")

    def promising(self, pool: Indices) -> Indices:
        return pool

    def score(self, view: View) -> Floats:
        score: Floats = self._improvements(view).mean(axis=0)
        return score

    def batch(self, view: View, size: int, rng: np.random.Generator) -> list[int]:
        improvements = self._improvements(view)
        chosen: list[int] = []
        for weight in range(min(size, len(view.indices))):
            row = improvements[weight % self._WEIGHTS].copy()
            row[chosen] = -1
            chosen.append(int(np.argmax(row)))
        return chosen

    def _improvements(self, view: View) -> Floats:
        """Expected improvement for each weighting, ``[weights, n]``."""
        means, total = self._means(view), np.zeros((self._WEIGHTS, len(view.indices)))
        deviations = np.zeros_like(means)
        for j in range(len(means)):
            if j != self._problem.known_objective:
                deviations[j] = view.predictions[f"objective {j}"].deviation
        for noise in self._noise:
            scalars = self._scalars(means + noise[:, None] * deviations)
            total += np.maximum(self._best[:, None] - scalars, 0)
        return total * view.feasible / self._DRAWS

    def _means(self, view: View) -> Floats:
        return np.stack(
            [view.objective(self._problem, j) for j in range(len(self._problem.signs))]
        )

    def _scalars(self, objectives: Floats) -> Floats:
        """Scalar of every weighting, ``[weights, n]``."""
        unit = (objectives - self._low[:, None]) / self._span[:, None]
        weighted = self._weights[:, :, None] * unit[None]
        scalars: Floats = weighted.max(axis=1) + 0.05 * weighted.sum(axis=1)
        return scalars


def _feasible_draws(beliefs: Beliefs, view: View, rng: np.random.Generator) -> Floats:
    """1 where all constraints hold in a joint draw, else 0, ``[draws, n]``."""
    features = beliefs.problem.space.features(view.indices)
    feasible = np.ones((_JOINT_DRAWS, len(view.indices)))
    for constraint in beliefs.problem.constraints:
        feasible *= beliefs.surrogates[constraint.name].sample(features, rng, _JOINT_DRAWS) <= 0
    return feasible


def _feasible_first(cost: Floats, feasible: Floats) -> Indices:
    """Order by cost those that are trusted to be feasible, then the others by their chance."""
    trusted = feasible >= _TRUSTED
    return np.lexsort((cost, np.where(trusted, 0, -feasible), ~trusted))
