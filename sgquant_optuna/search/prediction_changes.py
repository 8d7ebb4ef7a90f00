"""What quantization changes in the predictions of all nodes, labelled or not.

Node i, training s: the full-precision model predicts the class a, the quantized one the class b.
With p the mean class probabilities of all full-precision models, ``p_i(a) - p_i(b)`` is the
expected loss of accuracy by this node. It needs no label, so it is known for every node, which
makes its mean far less noisy than the drop on some hundred labelled nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from sgquant_optuna.graph.tasks.answer_kinds import fitted_temperature, mean_softmax
from sgquant_optuna.study.drop_evidence import DropEvidence


class ReferencePredictions:
    """Predictions of full precision, which those of quantized models are compared with.

    Args:
        scores:
            Class scores of each full-precision training, ``[N, C]``, in the order of the trainings
            of a trial.
        accuracies:
            Validation accuracy of each, in percent.
        labels:
            Classes of all nodes, ``[N]`` int64; those outside ``val_mask`` are not read.
        data:
            Columns ``train_mask`` and ``val_mask`` of the nodes, ``[N]`` bool.
        labelled:
            Nodes that any split of the graph measures on; those of ``val_mask`` by default.

    Reference:
        Guo et al. (2017), "On Calibration of Modern Neural Networks", for the temperature, which
        is fitted on the validation nodes.
    """

    def __init__(
        self,
        scores: Sequence[Tensor],
        accuracies: Sequence[float],
        labels: Tensor,
        data: Any,
        labelled: Tensor | None = None,
    ) -> None:
        self.accuracy = fmean(accuracies)
        self._outside = ~data.train_mask
        self._labelled = data.val_mask
        self._labels = labels[data.val_mask]
        self._in_all = None if labelled is None else data.val_mask[labelled].cpu().numpy()
        self._classes = [self.predictions(one) for one in scores]
        known = [one[self._labelled] for one in scores]
        temperature = fitted_temperature(
            lambda t: F.nll_loss(mean_softmax(known, t).clamp_min(1e-12).log(), self._labels)
        )
        self._probabilities = mean_softmax([one[self._outside] for one in scores], temperature)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the class that each node gets, ``[N]`` int64."""
        return outputs.argmax(dim=1)

    def flips(self, classes: Sequence[Tensor]) -> float:
        """Return how many predictions change, in percent of the nodes outside training.

        Args:
            classes:
                Predicted classes of each quantized training, ``[N]`` int64, in the order of the
                reference; there may be fewer trainings.
        """
        changed = [(a != b)[self._outside] for a, b in zip(self._classes, classes, strict=False)]
        return 100.0 * float(torch.stack(changed).double().mean())

    def evidence(self, classes: Sequence[Tensor]) -> DropEvidence:
        """Return expected and measured drops of some quantized trainings.

        Args:
            classes:
                Predicted classes of each quantized training, ``[N]`` int64, in the order of the
                reference; there may be fewer trainings.
        """
        expected, lost = [], []
        given_up = torch.zeros_like(self._probabilities)
        for before, after in zip(self._classes, classes, strict=False):
            change = torch.zeros_like(self._probabilities)
            for one, sign in ((before, 1.0), (after, -1.0)):
                at = one[self._outside][:, None]
                change.scatter_add_(1, at, torch.full_like(at, sign, dtype=change.dtype))
            expected.append(100.0 * float((self._probabilities * change).sum(dim=1).mean()))
            given_up += change / len(classes)
            right = [one[self._labelled] == self._labels for one in (before, after)]
            lost.append(self._among_all((right[0].long() - right[1].long()).cpu().numpy()))
        return DropEvidence.of(expected, lost, self._deviation(given_up))

    def _among_all(self, lost: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the losses of this split as those of all labelled nodes, with the same mean."""
        if self._in_all is None:
            return lost
        among = np.zeros(len(self._in_all))
        among[self._in_all] = lost * len(among) / len(lost)
        return among

    def _deviation(self, given_up: Tensor) -> float:
        """Return by how much the drop varies with the labels, in points.

        The drop at node i is ``given_up[i, y_i]``, where the label ``y_i`` has the probabilities
        ``p_i``; nodes are independent.
        """
        mean = (self._probabilities * given_up).sum(dim=1)
        variance = (self._probabilities * given_up**2).sum(dim=1) - mean**2
        return 100.0 * math.sqrt(max(float(variance.sum()), 0.0)) / len(given_up)
