"""How one assignment of widths is measured: training by training, until that decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from torch import Tensor, nn

from sgquant_optuna.attachment.calibrated_model import CalibratedModel
from sgquant_optuna.graph.tasks.task import Task
from sgquant_optuna.graph.training import TrainingResult
from sgquant_optuna.graph.training_config import TrainingConfig
from sgquant_optuna.quantization.memory import FeatureLayout, honest_memory, paper_memory
from sgquant_optuna.quantization.sites import BitWidths
from sgquant_optuna.search.reference import Reference
from sgquant_optuna.study.drop_evidence import DropEvidence
from sgquant_optuna.study.drop_slope import DropSlope
from sgquant_optuna.study.limit import Limit
from sgquant_optuna.study.plan import ObjectiveConfig
from sgquant_optuna.study.trial_result import TrialResult, TrialScore

_LOOK_MARGIN = 0.3  # share by which the expected drop of a first look may still fall
_TRAINING_MARGIN = 0.2  # share by which further trainings may move that of the first


@dataclass(frozen=True)
class Measurement:
    """What is known of an assignment so far.

    Args:
        flips:
            Predictions that change, in percent of the nodes outside training.
        evidence:
            Expected and measured drops of the trainings so far.
        accuracy:
            Mean validation metric of the trainings so far.
        trainings:
            Trainings that ended; 0 after a first look.
    """

    flips: float
    evidence: DropEvidence
    accuracy: float
    trainings: int

    def result(self, layout: FeatureLayout, bits: BitWidths, seconds: float) -> TrialResult:
        """Return it with the bytes of the assignment; bounds are for the study to learn.

        Args:
            layout:
                Sites with their sizes.
            bits:
                Width of each site.
            seconds:
                Wall time of the trial.
        """
        honest, paper = honest_memory(layout, bits), paper_memory(layout, bits)
        drop = fmean(self.evidence.measured)
        return TrialResult(
            accuracy=self.accuracy,
            accuracy_drop=drop,
            flips=self.flips,
            evidence=self.evidence,
            estimated_drop=drop,
            drop_bound=drop,
            trainings=self.trainings,
            memory_bytes=honest.memory_bytes,
            saving=honest.saving,
            paper_memory_bytes=paper.memory_bytes,
            paper_saving=paper.saving,
            average_bits=paper.average_bits,
            bit_widths=bits,
            seconds=seconds,
        )

    def is_decided(
        self,
        slope: DropSlope,
        limit: Limit,
        confidence: float,
        trainings: int,
        best: TrialScore | None,
        memory_bytes: float,
    ) -> bool:
        """Tell whether further trainings would hardly change what becomes of the trial.

        That is on which side of the limit it is, or with a budget, that it is not the best. What
        becomes the best gets all trainings: of many trials, the best after one is often one to
        whose model the widths did little.

        Args:
            slope:
                Slope of the drop that the study has learned so far.
            limit:
                Limit of the study.
            confidence:
                Probability of the bounds.
            trainings:
                Number of trainings that may follow in all.
            best:
                Best feasible trial of the study so far.
            memory_bytes:
                Bytes of the assignment.
        """
        if limit.budget_bytes is not None:
            margin = _TRAINING_MARGIN if self.trainings else _LOOK_MARGIN
            lowest = self.evidence.expected_drop * (1 - margin)
            return best is not None and lowest > best.expected_drop
        expected = self.evidence.expected_drop
        if not self.trainings:
            # The estimate, not its bound: what is learned later may lower the bound.
            return slope.estimate(expected * (1 - _LOOK_MARGIN)) > limit.largest_drop
        left = self.trainings / trainings
        margin = _TRAINING_MARGIN / self.trainings**0.5
        # Over more trainings the luck of the nodes averages out.
        lower = slope.bound(
            expected * (1 - margin), self.evidence.deviation * left**0.5, confidence
        )
        upper = slope.bound(expected * (1 + margin), self.evidence.deviation, confidence)
        is_best = best is None or memory_bytes < best.memory_bytes
        is_within = upper <= limit.largest_drop
        return lower > limit.largest_drop or (is_within and not is_best)


class Trainings:
    """The finetunings that every trial is measured on: each model from each seed.

    Args:
        models:
            Calibrated full-precision models.
        config:
            Options of the search: finetuning, repeats, seed and first look.
        task:
            Items and metric of the models.
    """

    def __init__(
        self, models: Sequence[CalibratedModel], config: ObjectiveConfig, task: Task
    ) -> None:
        self._config, self._task = config, task
        self._runs = [
            (model, config.seed + repeat) for model in models for repeat in range(config.repeats)
        ]

    def __len__(self) -> int:
        """Return the number of trainings."""
        return len(self._runs)

    def finetuned(
        self, bits: BitWidths, finetuning: TrainingConfig | None = None
    ) -> Iterator[tuple[nn.Module, TrainingResult]]:
        """Yield the models that these widths are measured on, one by one."""
        for model, seed in self._runs:
            yield model.finetune(bits, finetuning or self._config.finetuning, seed=seed)

    def scores(
        self, bits: BitWidths, finetuning: TrainingConfig | None = None
    ) -> Iterator[tuple[Tensor, float]]:
        """Yield the outputs for all items and the validation metric of each training."""
        tuned = self.finetuned(bits, finetuning)
        for (calibrated, _), (model, result) in zip(self._runs, tuned, strict=True):
            yield calibrated.scores(model), result.accuracy

    def measure(self, bits: BitWidths, reference: Reference) -> Iterator[Measurement]:
        """Yield what is known after a first look, if there is one, and after each training.

        Args:
            bits:
                Width of each site.
            reference:
                Predictions of the same trainings at full precision.
        """
        if 0 < self._config.first_look < self._config.finetuning.epochs:
            short = self._config.finetuning.with_epochs(self._config.first_look)
            (*_, look) = self._measured(bits, reference, short)
            yield replace(look, trainings=0)
        yield from self._measured(bits, reference, self._config.finetuning)

    def _measured(
        self, bits: BitWidths, reference: Reference, finetuning: TrainingConfig
    ) -> Iterator[Measurement]:
        predictions, accuracies = [], []
        for outputs, accuracy in self.scores(bits, finetuning):
            predictions.append(reference.predictions(outputs))
            accuracies.append(accuracy)
            yield Measurement(
                flips=reference.flips(predictions),
                evidence=reference.evidence(predictions),
                accuracy=fmean(accuracies),
                trainings=len(predictions),
            )
