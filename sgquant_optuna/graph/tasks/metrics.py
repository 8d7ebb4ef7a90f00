"""Metrics: functions of outputs and targets, with the unit and direction of their values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sgquant_optuna.exceptions import TaskError

PERCENT = "%"


@dataclass(frozen=True)
class Metric:
    """A score of outputs, by which full precision and quantized models are compared.

    Args:
        name:
            Name that reports show.
        function:
            Function of outputs and targets of the same items, that returns a finite number.
        unit:
            Unit of the values: ``"%"`` for shares from 0 to 100, that of the targets, or none.
        higher_is_better:
            Whether a larger value is better.
    """

    name: str
    function: Callable[[Tensor, Tensor], float]
    unit: str = ""
    higher_is_better: bool = True

    @classmethod
    def of(cls, given: Metric | Callable[[Tensor, Tensor], float]) -> Metric:
        """Return a metric, or make one of a plain function, whose larger values are better."""
        if isinstance(given, Metric):
            return given
        if not callable(given):
            raise TaskError(
                f"metric: expected a Metric, or a function of outputs and targets, got "
                f"{type(given).__name__}"
            )
        return cls(getattr(given, "__name__", type(given).__name__), given)

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the value.

        Raises:
            TaskError:
                If it is not a finite number.
        """
        value = self.function(outputs, targets)
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            got = f"{type(value).__name__}"
            if isinstance(value, Tensor):
                got = f"a tensor {list(value.shape)}"
            raise TaskError(f"metric {self.name}: expected a number, got {got}") from None
        if not math.isfinite(number):
            raise TaskError(
                f"metric {self.name}: expected a finite number for {len(targets)} items, got "
                f"{number}"
            )
        return number

    def drop(self, full: float, quantized: float) -> float:
        """Return by how much the second value is worse than the first, in the metric's unit."""
        return full - quantized if self.higher_is_better else quantized - full


def _right(scores: Tensor, classes: Tensor) -> float:
    return 100.0 * float((scores.argmax(dim=1) == classes).double().mean())


def _micro_f1(scores: Tensor, labels: Tensor) -> float:
    said, true = scores > 0, labels > 0.5
    hits = int((said & true).sum())
    total = int(said.sum()) + int(true.sum())
    return 100.0 * 2 * hits / total if total else 100.0


def _roc_auc(scores: Tensor, labels: Tensor) -> float:
    """Return the share of pairs of a positive and a negative in the right order, ties half."""
    positive = scores[labels > 0.5].double()
    negative = scores[labels <= 0.5].double().sort().values
    if not len(positive) or not len(negative):
        return 50.0  # nothing to order
    below = torch.searchsorted(negative, positive, right=False)
    not_above = torch.searchsorted(negative, positive, right=True)
    return 100.0 * float((below + not_above).double().mean()) / 2 / len(negative)


def _macro_roc_auc(scores: Tensor, labels: Tensor) -> float:
    values = [
        _roc_auc(scores[:, at], labels[:, at])
        for at in range(labels.shape[1])
        if 0 < int((labels[:, at] > 0.5).sum()) < len(labels)
    ]
    return sum(values) / len(values) if values else 50.0


def _ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the rank of each positive among all negatives, from 1; ties count half."""
    positive = scores[labels > 0.5].double()
    negative = scores[labels <= 0.5].double().sort().values
    above = len(negative) - torch.searchsorted(negative, positive, right=True)
    not_below = len(negative) - torch.searchsorted(negative, positive, right=False)
    return 1 + (above + not_below).double() / 2


def _mrr(scores: Tensor, labels: Tensor) -> float:
    ranks = _ranks(scores, labels)
    return 100.0 * float((1 / ranks).mean()) if len(ranks) else 0.0


def hits(k: int) -> Metric:
    """Return the metric Hits@K: the percentage of positives among the first K of all negatives.

    Args:
        k:
            Number K, at least 1.
    """
    if k < 1:
        raise ValueError(f"hits: expected k >= 1, got {k}")
    return Metric(f"Hits@{k}", partial(_share_within, k), PERCENT)


def _share_within(k: int, scores: Tensor, labels: Tensor) -> float:
    ranks = _ranks(scores, labels)
    return 100.0 * float((ranks <= k).double().mean()) if len(ranks) else 0.0


def _mae(outputs: Tensor, values: Tensor) -> float:
    return float((outputs - values).abs().double().mean())


def _rmse(outputs: Tensor, values: Tensor) -> float:
    return math.sqrt(float((outputs - values).double().square().mean()))


right_answers = Metric("accuracy", _right, PERCENT)
micro_f1 = Metric("micro-F1", _micro_f1, PERCENT)
roc_auc = Metric("ROC-AUC", _roc_auc, PERCENT)
macro_roc_auc = Metric("ROC-AUC", _macro_roc_auc, PERCENT)
mrr = Metric("MRR", _mrr, PERCENT)
mean_absolute_error = Metric("MAE", _mae, higher_is_better=False)
root_mean_squared_error = Metric("RMSE", _rmse, higher_is_better=False)
