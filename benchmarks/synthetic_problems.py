"""Synthetic bit-width problems whose optimum is known by enumeration.

Each has a memory (a weighted mean of bits, in percent of float32) and an accuracy drop (in
percentage points). The task is to find the least memory with a drop of at most ``MAX_DROP``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

MAX_DROP = 0.5

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Problem:
    """A grid of bit widths with memory and drop of every configuration.

    Args:
        name:
            Name in tables.
        widths:
            Bit widths that each parameter may take, ascending.
        memory:
            Memory in percent of float32, one value for each configuration in row-major order.
        drop:
            True accuracy drop in percentage points, in the same order.
        max_drop:
            Largest drop that is feasible, in percentage points.
    """

    name: str
    widths: tuple[tuple[int, ...], ...]
    memory: Floats
    drop: Floats
    max_drop: float = MAX_DROP

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of widths of each parameter."""
        return tuple(len(w) for w in self.widths)

    @property
    def optimum(self) -> float:
        """The least memory of a feasible configuration."""
        return float(self.memory[self.drop <= self.max_drop].min())

    def row(self, index: tuple[int, ...]) -> int:
        """Position of a configuration in ``memory`` and ``drop``."""
        return int(np.ravel_multi_index(index, self.shape))

    @property
    def names(self) -> list[str]:
        """Names of the parameters in a study."""
        return [f"site{i:02d}" for i in range(len(self.widths))]

    def space(self, *, ordinal: bool) -> dict[str, BaseDistribution]:
        """Parameters of a study: positions of widths, or the widths themselves."""
        return {
            name: IntDistribution(0, len(widths) - 1)
            if ordinal
            else CategoricalDistribution(widths)
            for name, widths in zip(self.names, self.widths, strict=True)
        }

    def row_of(self, params: Mapping[str, Any], *, ordinal: bool) -> int:
        """Position of a trial's configuration in ``memory`` and ``drop``."""
        values = [params[name] for name in self.names]
        if not ordinal:
            values = [w.index(v) for w, v in zip(self.widths, values, strict=True)]
        return self.row(tuple(values))

    def memory_of(self, params: Mapping[str, Any], *, ordinal: bool) -> float:
        """Memory of a trial's configuration, in percent of float32."""
        return float(self.memory[self.row_of(params, ordinal=ordinal)])

    def drop_of(self, params: Mapping[str, Any], *, ordinal: bool) -> float:
        """True drop of a trial's configuration, in percentage points."""
        return float(self.drop[self.row_of(params, ordinal=ordinal)])


@dataclass(frozen=True)
class WideProblem:
    """Many sites, too many to list; their errors add up in whole units, so the optimum is known.

    Args:
        widths:
            Bit widths that each site may take, ascending.
        memory:
            Memory of each site and width in percent of float32, ``[sites, widths]``.
        units:
            Error of each site and width in units of 0.01 points, ``[sites, widths]``.
        max_drop:
            Largest drop that is feasible, in percentage points.
    """

    widths: tuple[int, ...]
    memory: Floats
    units: Indices
    max_drop: float = MAX_DROP

    @property
    def optimum(self) -> float:
        """The least memory of a feasible configuration, by dynamic programming over the units."""
        limit = int(np.flatnonzero(_saturate(np.arange(1000) / 100) <= self.max_drop)[-1])
        least = np.zeros(limit + 1)  # memory of the sites so far, by the units that are left
        for memory, units in zip(self.memory, self.units, strict=True):
            after = np.full(limit + 1, np.inf)
            for cost, used in zip(memory, units, strict=True):
                if used <= limit:
                    after[used:] = np.minimum(after[used:], least[: limit + 1 - used] + cost)
            least = after
        return float(least[-1])

    @property
    def names(self) -> list[str]:
        """Names of the parameters in a study."""
        return [f"site{i:02d}" for i in range(len(self.memory))]

    def space(self, *, ordinal: bool) -> dict[str, BaseDistribution]:
        """Parameters of a study: positions of widths, or the widths themselves."""
        last = len(self.widths) - 1
        return {
            name: IntDistribution(0, last) if ordinal else CategoricalDistribution(self.widths)
            for name in self.names
        }

    def memory_of(self, params: Mapping[str, Any], *, ordinal: bool) -> float:
        """Memory of a trial's configuration, in percent of float32."""
        return float(sum(self.memory[i, p] for i, p in self._positions(params, ordinal)))

    def drop_of(self, params: Mapping[str, Any], *, ordinal: bool) -> float:
        """True drop of a trial's configuration, in percentage points."""
        total = sum(self.units[i, p] for i, p in self._positions(params, ordinal))
        return float(_saturate(np.array(total / 100)))

    def _positions(self, params: Mapping[str, Any], ordinal: bool) -> list[tuple[int, int]]:
        values = [params[name] for name in self.names]
        return list(enumerate(values if ordinal else map(self.widths.index, values)))


def smooth(seed: int) -> Problem:
    """Exponential errors of eight sites, six pairs that interact, saturating at 60 points."""
    return _search_feasible(seed, _smooth, low=0.02, high=0.05)


def cliffs(seed: int) -> Problem:
    """Eight sites that each fail below a width of their own; the drop has steps of 0.2 points."""
    return _search_feasible(seed, _cliffs, low=0.005, high=0.08)


def layers(seed: int) -> Problem:
    """Ten sites of five layers whose relative errors multiply along the network."""
    return _search_feasible(seed, _layers, low=0.0005, high=0.02)


def wide(seed: int) -> WideProblem:
    """Twenty sites whose exponential errors add up, saturating at 60 points."""
    rng, widths = np.random.default_rng(seed), (1, 2, 4, 8)
    bits = np.array(widths, dtype=np.float64)
    scale, rate = rng.uniform(0.5, 6, (20, 1)), rng.uniform(0.5, 1.6, (20, 1))
    weights = rng.dirichlet(np.full(20, 1.5))[:, None]
    units = np.rint(100 * scale * np.exp(-rate * bits)).astype(np.int64)
    return WideProblem(widths, 100 * weights * bits / 32, units)


PROBLEMS = {"smooth": smooth, "cliffs": cliffs, "layers": layers}
WIDE_PROBLEMS = {"wide": wide}


def _search_feasible(seed, make, *, low, high):  # type: ignore[no-untyped-def]
    """Draw problems until the share of feasible configurations is neither zero nor large."""
    for attempt in range(200):
        problem = make(np.random.default_rng([seed, attempt]))
        if low <= np.mean(problem.drop <= MAX_DROP) <= high:
            return problem
    raise RuntimeError("no problem with the wanted share of feasible configurations")


def _grid(widths: tuple[tuple[int, ...], ...]) -> Indices:
    grids = np.meshgrid(*[np.arange(len(w)) for w in widths], indexing="ij")
    return np.stack([g.ravel() for g in grids], axis=1)


def _memory(bits: Floats, rng: np.random.Generator) -> Floats:
    weights = rng.dirichlet(np.full(bits.shape[1], 1.5))
    memory: Floats = 100 * bits @ weights / 32
    return memory


def _saturate(total: Floats) -> Floats:
    """Drop of summed errors, in percentage points: no more than 60 points can be lost."""
    drop: Floats = 60 * (1 - np.exp(-total / 60))
    return drop


def _smooth(rng: np.random.Generator) -> Problem:
    widths = ((1, 2, 4, 8, 16),) * 8
    index = _grid(widths)
    bits = np.array(widths[0], dtype=np.float64)[index]
    scale, rate = rng.uniform(1, 12, 8), rng.uniform(0.4, 1.6, 8)
    errors = scale * np.exp(-rate * bits)
    total = errors.sum(axis=1)
    for _ in range(6):
        i, j = rng.choice(8, 2, replace=False)
        total += rng.uniform(0.0, 0.3) * np.sqrt(errors[:, i] * errors[:, j])
    return Problem("smooth", widths, _memory(bits, rng), _saturate(total))


def _cliffs(rng: np.random.Generator) -> Problem:
    widths = ((1, 2, 3, 4, 8),) * 8
    index = _grid(widths)
    bits = np.array(widths[0], dtype=np.float64)[index]
    edge = rng.choice([0.0, 1.5, 2.5, 3.5], size=8, p=[0.3, 0.3, 0.25, 0.15])
    height = rng.uniform(0.3, 12, 8)
    slope = rng.uniform(0.05, 0.4, 8)
    broken = height / (1 + np.exp((bits - edge) / slope))
    lost = broken.sum(axis=1) + 2 * (broken > 1).sum(axis=1).clip(1) - 2
    drop = np.rint(5 * (40 * (1 - np.exp(-lost / 40)))) / 5
    return Problem("cliffs", widths, _memory(bits, rng), drop)


def _layers(rng: np.random.Generator) -> Problem:
    widths = ((1, 2, 4, 8),) * 10
    index = _grid(widths).astype(np.int8)
    width = np.array(widths[0], dtype=np.float64)
    kept = np.ones(len(index))
    for site in range(10):
        error = rng.uniform(0.02, 0.25) * 2.0 ** (-rng.uniform(0.6, 2.0) * (width - 1))
        if site % 2:  # attention is averaged over neighbours, so its error matters less
            error *= 0.4
        kept *= 1 - np.minimum(error, 0.95)[index[:, site]]
    drop = 70 * (1 - kept) ** 1.5
    weights = rng.dirichlet(np.full(10, 1.5))
    memory = sum(100 * weights[s] * width[index[:, s]] / 32 for s in range(10))
    return Problem("layers", widths, np.asarray(memory), drop)
