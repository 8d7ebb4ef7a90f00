"""What the plots of a study are drawn from: arrays, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import optuna

from sgquant_optuna.bit_widths import BitWidths
from sgquant_optuna.exceptions import StudyNotFoundError
from sgquant_optuna.memory import honest_memory
from sgquant_optuna.sampler.explain import Calibration, Sensitivity, partial_dependence
from sgquant_optuna.sampler.space import FiniteSpace
from sgquant_optuna.sampler.surrogate import Surrogate, probability_below
from sgquant_optuna.sampler.training import Floats, target_of
from sgquant_optuna.search_space import BitWidthSearchSpace
from sgquant_optuna.selection import MEASURED_ATTRS, choose, is_measured
from sgquant_optuna.study_record import StudyRecord
from sgquant_optuna.trial_rows import TrialRow, trial_rows

_ATTRS = (*MEASURED_ATTRS, "saving", "bit_widths", "predicted")
_MAX_LEARNED = 400  # a Gaussian process of more takes seconds and shows the same
_CANDIDATES = 2000
_LIMIT = "constraint 0"  # how the cost model names the drop less the limit
_DROP = "objective 1"


@dataclass(frozen=True)
class Measurements:
    """The finished trials of a study, as arrays in the order of their numbers.

    Args:
        record:
            What the study was measured on.
        rows:
            Its finished trials.
        chosen:
            The trial to take.
        held:
            Whether that kept the accuracy in the final report, on fresh seeds.
    """

    record: StudyRecord
    rows: tuple[TrialRow, ...]
    chosen: TrialRow
    held: bool

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """Trial numbers, ``[n]``."""
        return np.array([row.number for row in self.rows], dtype=np.int64)

    @cached_property
    def megabytes(self) -> Floats:
        """Honest memory, ``[n]``."""
        return self._column("memory_bytes") / 1e6

    @cached_property
    def drops(self) -> Floats:
        """Drop of validation accuracy in percentage points, ``[n]``."""
        return self._column("accuracy_drop")

    @cached_property
    def savings(self) -> Floats:
        """How many times smaller than dense float32, ``[n]``."""
        return self._column("saving")

    @property
    def is_feasible(self) -> npt.NDArray[np.bool_]:
        """Whether the drop is within the limit, ``[n]``."""
        feasible: npt.NDArray[np.bool_] = self.drops <= self.record.max_drop
        return feasible

    @property
    def chosen_bits(self) -> BitWidths:
        """Widths of the trial to take."""
        return BitWidths.from_dict(self.chosen.user_attrs["bit_widths"])

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

    def calibration(self) -> Calibration:
        """Drops that the cost model predicted, against those measured, in percentage points."""
        rows = []
        for row, drop in zip(self.rows, self.drops, strict=True):
            predicted: Mapping[str, float] = row.user_attrs.get("predicted") or {}
            for key, offset in ((_LIMIT, self.record.max_drop), (_DROP, 0.0)):
                if key in predicted:
                    deviation = predicted.get(f"{key} deviation", np.nan)
                    rows.append((row.number, predicted[key] + offset, deviation, drop))
                    break
        table = np.array(rows, dtype=np.float64).reshape(-1, 4)
        return Calibration(table[:, 0].astype(np.int64), table[:, 1], table[:, 2], table[:, 3])

    def sensitivity(self) -> list[Sensitivity]:
        """Expected drop in points for each width of each parameter, by the cost model."""
        space, surrogate = self._cost_model
        limit = self.record.max_drop
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
        indices = [space.index_of(self._params(bits, self.rows[i])) for i in picked]
        known = [i for i, index in enumerate(indices) if index is not None]
        if len(known) < 2:
            raise ValueError("plots: expected two finished trials to learn from")
        target = target_of(
            space,
            _LIMIT,
            np.array([indices[i] for i in known], dtype=np.int64),
            self.drops[picked[known]] - self.record.max_drop,
        )
        return space, Surrogate(target, seed=0)

    @cached_property
    def _search_space(self) -> BitWidthSearchSpace:
        space = self.record.fingerprint["space"]
        return BitWidthSearchSpace(
            self.record.layout.sizes,
            granularity=space["granularity"],
            bit_widths=space["bit_widths"],
            frozen=space["frozen"],
        )

    @staticmethod
    def _params(bits: BitWidthSearchSpace, row: TrialRow) -> dict[str, int]:
        return bits.params_of(BitWidths.from_dict(row.user_attrs["bit_widths"]))

    def _saving(self, space: FiniteSpace, index: npt.NDArray[np.int64]) -> float:
        params = {
            name: space.value_at(name, int(position))
            for name, position in zip(space.names, index, strict=True)
        }
        return honest_memory(self.record.layout, self._search_space.from_params(params)).saving

    def _column(self, name: str) -> Floats:
        return np.array([float(row.user_attrs[name]) for row in self.rows], dtype=np.float64)


def measurements(study: optuna.Study) -> Measurements:
    """Read what the plots of a study need.

    Raises:
        StudyNotFoundError:
            If the study is not of our objective, or no trial is finished.
        StudyMismatchError:
            If another version of this package wrote its record.
    """
    record = StudyRecord.load(study)
    if record is None:
        raise StudyNotFoundError(
            f"study {study.study_name!r}: expected a study of QuantizationObjective, got another"
        )
    rows = [row for row in trial_rows(study, _ATTRS) if is_measured(row)]
    chosen, final = choose(study, rows, record.max_drop)
    return Measurements(record, tuple(rows), chosen, held=final is not None and final.holds)


def expected_best(values: Floats, probable: Floats, draws: int) -> Floats:
    """Return the expected best of 1, 2, ... random draws, each of which may be void.

    Args:
        values:
            Equally likely values from the best on, ``[m]``.
        probable:
            Probability that a draw of each counts, ``[m]``.
        draws:
            How many draws to tell of.

    Returns:
        The expectations, ``[draws]``; 1 counts where no draw did.
    """
    reached = np.concatenate([[0.0], np.cumsum(probable) / len(values)])
    missed = np.maximum(1.0 - reached, 0.0)[None, :] ** np.arange(1, draws + 1)[:, None]
    expected: Floats = (missed[:, :-1] - missed[:, 1:]) @ values + missed[:, -1]
    return expected
