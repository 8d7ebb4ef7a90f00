"""What full precision predicts: the yardstick of all trials of a study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from sgquant_optuna.graph.node_types import Graph
from sgquant_optuna.graph.tasks.answer_kinds import Classes
from sgquant_optuna.graph.tasks.metrics import right_answers
from sgquant_optuna.graph.tasks.task import Task
from sgquant_optuna.search.output_changes import ReferenceOutputs
from sgquant_optuna.search.prediction_changes import ReferencePredictions
from sgquant_optuna.study.drop_evidence import DropEvidence


class Reference(Protocol):
    """Predictions of full precision, which those of quantized models are compared with."""

    accuracy: float
    """Mean validation metric of its trainings."""

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return what is kept of the outputs of a training to compare it."""

    def flips(self, predictions: Sequence[Tensor]) -> float:
        """Return how many predictions outside training change, in percent."""

    def evidence(self, predictions: Sequence[Tensor]) -> DropEvidence:
        """Return expected and measured drops of some quantized trainings."""


def reference_of(
    task: Task,
    trainings: Sequence[tuple[Tensor, float]],
    data: Graph,
    labelled: Tensor | None = None,
) -> Reference:
    """Return the reference of a task; that of accuracy is computed without drawing labels.

    Args:
        task:
            Items, kind of answers and metric.
        trainings:
            Outputs for all items, and validation metric, of each full-precision training.
        data:
            Graph with targets and masks.
        labelled:
            Items that any split of the graph measures on, ``[I]`` bool; those of ``val_mask`` by
            default. Where this split has no label, nothing is lost.
    """
    outputs, metrics = [one for one, _ in trainings], [metric for _, metric in trainings]
    if isinstance(task.answers, Classes) and task.metric is right_answers:
        part = task.part(data)
        return ReferencePredictions(outputs, metrics, task.targets(data), part, labelled)
    return ReferenceOutputs(task, outputs, metrics, data, labelled)
