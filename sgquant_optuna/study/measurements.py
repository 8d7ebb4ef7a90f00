"""What the plots of a study are drawn from: arrays, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import optuna

from sgquant_optuna.quantization.memory import honest_memory
from sgquant_optuna.quantization.sites import BitWidths
from sgquant_optuna.sampler.explain import (
    PREDICTED_KEY,
    Calibration,
    Sensitivity,
    partial_dependence,
    prediction_of,
)
from sgquant_optuna.sampler.problem import target_of
from sgquant_optuna.sampler.space import FiniteSpace, Floats
from sgquant_optuna.sampler.surrogate import Surrogate, probability_below
from sgquant_optuna.study.record import StudyRecord
from sgquant_optuna.study.rows import TrialRow, trial_rows
from sgquant_optuna.study.search_space import BitWidthSearchSpace
from sgquant_optuna.study.selection import Ranked, choose
from sgquant_optuna.study.trial_result import TrialResult

_MAX_LEARNED = 400  # a Gaussian process of more takes seconds and shows the same
_CANDIDATES = 2000
_LIMIT = "constraint 0"  # how the cost model names the drop less the limit
_DROP = "objective 1"
_ONLY_DROP = "objective 0"  # in mode "budget"


@dataclass(frozen=True)
class Measurements:
    """The finished trials of a study, as arrays in the order of their numbers.

    Args:
        record:
            Record of the study.
        rows:
            Finished trials of the study.
        chosen:
            Trial to take.
        held:
            Whether that was within the limit in the final report, on fresh seeds.
    """

    record: StudyRecord
    rows: tuple[TrialRow[TrialResult], ...]
    chosen: Ranked[TrialResult]
    held: bool

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """Trial numbers, ``[n]``."""
        return np.array([row.number for row in self.rows], dtype=np.int64)

    @cached_property
    def megabytes(self) -> Floats:
        """Honest memory, ``[n]``."""
        return np.array([result.memory_bytes for result in self._results]) / 1e6

    @cached_property
    def drops(self) -> Floats:
        """Bound of the drop in the metric's unit, ``[n]``."""
        return np.array([result.drop_bound for result in self._results])

    @cached_property
    def expected_drops(self) -> Floats:
        """Expected drop in the metric's unit, ``[n]``."""
        return np.array([result.expected_drop for result in self._results])

    @cached_property
    def savings(self) -> Floats:
        """How many times smaller than dense float32, ``[n]``."""
        return np.array([result.saving for result in self._results])

    @property
    def is_feasible(self) -> npt.NDArray[np.bool_]:
        """Whether each trial is within the limit, ``[n]``."""
        limit = self.record.limit
        return np.array([limit.is_feasible(result) for result in self._results], dtype=np.bool_)

    @property
    def chosen_bits(self) -> BitWidths:
        """Widths of the trial to take."""
        return self.chosen.result.bit_widths

    def frontier(self) -> npt.NDArray[np.int64]:
        """Positions of the trials that no other beats in both memory and drop, by memory."""
        order: npt.NDArray[np.int64] = np.lexsort((self.drops, self.megabytes))
        lowest = np.minimum.accumulate(self.drops[order])
        better = np.concatenate([[True], self.drops[order][1:] < lowest[:-1]])
        front: npt.NDArray[np.int64] = order[better]
        return front

    def best_savings(self) -> Floats:
        """Best feasible saving after each trial, ``[n]``; NaN before the first feasible one."""
        saved = np.where(self.is_feasible, self.savings, -np.inf)
        best = np.maximum.accumulate(saved)
        return np.where(np.isfinite(best), best, np.nan)

    def least_drops(self) -> Floats:
        """Least drop of a trial within the limit after each, ``[n]``; NaN before the first."""
        least = np.minimum.accumulate(np.where(self.is_feasible, self.drops, np.inf))
        return np.where(np.isfinite(least), least, np.nan)

    def calibration(self) -> Calibration:
        """Drops that the cost model predicted, against those measured, in the metric's unit."""
        rows = []
        for row, bound, expected in zip(self.rows, self.drops, self.expected_drops, strict=True):
            predicted = prediction_of(row.extras)
            found = predicted_drop(self.record, predicted)
            if found is not None:
                is_bound = self.record.mode == "constrained"
                rows.append((row.number, *found, bound if is_bound else expected))
        table = np.array(rows, dtype=np.float64).reshape(-1, 4)
        return Calibration(table[:, 0].astype(np.int64), table[:, 1], table[:, 2], table[:, 3])

    def sensitivity(self) -> list[Sensitivity]:
        """Expected drop for each width of each parameter, by the cost model."""
        space, surrogate = self._cost_model
        limit = self._origin
        return [
            Sensitivity(entry.name, entry.choices, entry.expected + limit)
            for entry in partial_dependence(space, surrogate)
        ]

    def random_reference(self) -> Floats:
        """Best saving that random search is expected to have after each trial, ``[n]``.

        Random configurations are drawn, their memory is computed exactly, and the cost model of
        this study says how probably each is feasible. Before something feasible is found the
        saving is 1. It is an expectation of a model: no random search was run.
        """
        space, surrogate = self._cost_model
        drawn = space.random(np.random.default_rng(0), _CANDIDATES)
        savings = np.array([self._saving(space, row) for row in drawn])
        probable = probability_below(surrogate.predict(space.features(drawn)))
        order = np.argsort(-savings)
        return expected_best(savings[order], probable[order], len(self.rows))

    @property
    def num_learned(self) -> int:
        """Trials that the cost model of the plots is fitted on."""
        return min(len(self.rows), _MAX_LEARNED)

    @cached_property
    def _cost_model(self) -> tuple[FiniteSpace, Surrogate]:
        bits = self._search_space
        space = FiniteSpace(bits.distributions)
        picked = np.random.default_rng(0).permutation(len(self.rows))[: self.num_learned]
        widths = [self._results[i].bit_widths for i in picked]
        indices = [space.index_of(bits.params_of(one)) for one in widths]
        known = [i for i, index in enumerate(indices) if index is not None]
        if len(known) < 2:
            raise ValueError("plots: expected two finished trials to learn from")
        target = target_of(
            space,
            _LIMIT,
            np.array([indices[i] for i in known], dtype=np.int64),
            self.drops[picked[known]] - self._origin,
        )
        return space, Surrogate(target, seed=0)

    @property
    def _origin(self) -> float:
        """Drop around which the cost model is finest: the limit, or full precision."""
        return self.record.limit.max_drop or 0.0

    @cached_property
    def _search_space(self) -> BitWidthSearchSpace:
        return self.record.search_space

    @cached_property
    def _results(self) -> list[TrialResult]:
        return [row.result for row in self.rows if row.result is not None]

    def _saving(self, space: FiniteSpace, index: npt.NDArray[np.int64]) -> float:
        params = {
            name: space.value_at(name, int(position))
            for name, position in zip(space.names, index, strict=True)
        }
        return honest_memory(self.record.layout, self._search_space.from_params(params)).saving


def measurements(study: optuna.Study) -> Measurements:
    """Read what the plots of a study need.

    Raises:
        StudyNotFoundError:
            If the study is not of our objective, or no trial is finished.
        StudyMismatchError:
            If another version of this package wrote its record.
    """
    record = StudyRecord.of(study)
    every = trial_rows(study, TrialResult, [PREDICTED_KEY])
    rows = tuple(row for row in every if row.result is not None)
    chosen, final = choose(study, rows, record.limit)
    return Measurements(record, rows, chosen, held=final is not None and final.holds)


def predicted_drop(
    record: StudyRecord, predicted: Mapping[str, float]
) -> tuple[float, float] | None:
    """Return the drop that the sampler predicted, and its deviation, in the metric's unit.

    Args:
        record:
            Record of the study.
        predicted:
            Prediction of the sampler's cost model, as a trial holds it.
    """
    offsets = {_LIMIT: record.max_drop, _DROP: 0.0}
    if record.budget_bytes is not None:
        offsets = {_ONLY_DROP: 0.0}
    for key, offset in offsets.items():
        if key in predicted:
            return predicted[key] + offset, predicted.get(f"{key} deviation", np.nan)
    return None


def expected_best(values: Floats, probable: Floats, draws: int) -> Floats:
    """Return the expected best of 1, 2, ... random draws, each of which may be void.

    Args:
        values:
            Equally likely values from the best on, ``[m]``.
        probable:
            Probability that a draw of each counts, ``[m]``.
        draws:
            Number of draws.

    Returns:
        The expectations, ``[draws]``; 1 counts where no draw did.
    """
    reached = np.concatenate([[0.0], np.cumsum(probable) / len(values)])
    missed = np.maximum(1.0 - reached, 0.0)[None, :] ** np.arange(1, draws + 1)[:, None]
    expected: Floats = (missed[:, :-1] - missed[:, 1:]) @ values + missed[:, -1]
    return expected
