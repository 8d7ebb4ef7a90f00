"""Trainings from seeds that a search never used, to measure its best trials again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, stdev

from torch import Tensor, nn

from sgquant_optuna.attachment.calibrated_model import CalibratedModel
from sgquant_optuna.quantization.sites import BitWidths
from sgquant_optuna.search.objective import QuantizationObjective
from sgquant_optuna.search.split_reference import reference_on
from sgquant_optuna.study.drop_evidence import DropEvidence
from sgquant_optuna.study.drop_slope import DropSlope

_FRESH_SEEDS = 1000  # far from the seeds of any search


@dataclass(frozen=True)
class FreshMeasurement:
    """What fresh trainings of one assignment changed.

    Args:
        flips:
            Predictions that change, in percent of the nodes outside training.
        evidence:
            Expected and measured drops of the trainings.
    """

    flips: float
    evidence: DropEvidence

    @property
    def trainings(self) -> int:
        """Number of trainings."""
        return self.evidence.trainings

    def bound(self, slope: DropSlope, confidence: float, *, sign: int = 0) -> float:
        """Return what the drop does not exceed with a confidence, in the metric's unit.

        Args:
            slope:
                Slope of the drop that the study has learned.
            confidence:
                Probability of the bound.
            sign:
                1 or -1 for the bound at the upper or lower end of what the mean over all trainings
                may be, as far as these tell.
        """
        expected = self.evidence.expected
        error = stdev(expected) / math.sqrt(len(expected))
        moved = fmean(expected) + sign * error
        return slope.bound(moved, self.evidence.deviation, confidence)


class FreshTrainings:
    """Full-precision models from fresh seeds, each finetuned with any widths; made when needed.

    Args:
        objective:
            Objective that measured the study.
        retrain:
            Function that trains the full-precision model anew from a seed; without it, fresh seeds
            change the finetuning of the first model alone. With several splits it takes the
            number of the split, too, and the splits take turns.
    """

    def __init__(
        self, objective: QuantizationObjective, retrain: Callable[..., nn.Module] | None
    ) -> None:
        self._objective = objective
        self._retrain = retrain
        self._models: list[CalibratedModel] = []
        self._scores: dict[tuple[int, str], tuple[Tensor, float]] = {}

    def measure(self, bits: BitWidths, count: int) -> FreshMeasurement:
        """Measure an assignment on the first ``count`` trainings."""
        full = [self._finetuned(at, self._objective.full_precision) for at in range(count)]
        splits = [self.split(at) for at in range(count)]
        reference = reference_on(self._objective.task, full, self._objective.graphs, splits)
        predictions = [reference.predictions(one) for one in self.outputs(bits, count)]
        return FreshMeasurement(reference.flips(predictions), reference.evidence(predictions))

    def outputs(self, bits: BitWidths, count: int) -> list[Tensor]:
        """Return the outputs of the first trainings with these widths, for all items."""
        return [self._finetuned(at, bits)[0] for at in range(count)]

    def split(self, at: int) -> int:
        """Return the number of the split of a training."""
        return at % len(self._objective.graphs)

    def _finetuned(self, at: int, bits: BitWidths) -> tuple[Tensor, float]:
        """Return the outputs for all items and the validation metric of a training."""
        key = (at, str(bits.to_dict()))
        if key not in self._scores:
            seed = _FRESH_SEEDS + at
            model = self._model(at)
            tuned, result = model.finetune(bits, self._objective.config.finetuning, seed=seed)
            self._scores[key] = model.scores(tuned), result.accuracy
        return self._scores[key]

    def _model(self, at: int) -> CalibratedModel:
        if self._retrain is None:
            return self._objective.models[self.split(at)]
        graphs = self._objective.graphs
        while len(self._models) <= at:
            made = len(self._models)
            split = self.split(made)
            arguments = (split,) if len(graphs) > 1 else ()
            trained = self._retrain(_FRESH_SEEDS + made, *arguments)
            self._models.append(self._objective.calibrated(trained, graphs[split]))
        return self._models[at]
