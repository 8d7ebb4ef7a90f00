"""What quantization costs by any metric, on items whose targets nobody knows.

Targets of all items outside training are drawn as the full-precision models find them probable;
the metric of full precision less that of the quantized model, on the same drawn targets, is the
expected drop. Its spread over the draws is the luck of the items. On the validation items the
targets are known, and tell the drop that was measured; what each group of them adds to it is told
by leaving it out (the jackknife), because a metric such as AUC is no sum over items.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from sgquant_optuna.graph.node_types import Graph
from sgquant_optuna.graph.tasks.task import Task
from sgquant_optuna.study.drop_evidence import DropEvidence

_DRAWS = 64
_GROUPS = 40
_LEAST_ITEMS = 4  # of a group
_SEED = 0


class ReferenceOutputs:
    """Outputs of full precision, which those of quantized models are compared with.

    Args:
        task:
            Items, kind of answers and metric.
        outputs:
            Outputs of each full-precision training for all items, in the order of the trainings of
            a trial.
        accuracies:
            Validation metric of each.
        data:
            Graph with targets, ``train_mask`` and ``val_mask``. The targets of other items are not
            read.
        labelled:
            Items that any split of the graph measures on; those of ``val_mask`` by default.

    Reference:
        Efron and Stein (1981), "The jackknife estimate of variance", for the pseudo-values.
    """

    def __init__(
        self,
        task: Task,
        outputs: Sequence[Tensor],
        accuracies: Sequence[float],
        data: Graph,
        labelled: Tensor | None = None,
    ) -> None:
        self.accuracy = fmean(accuracies)
        self._task = task
        part = task.part(data)
        self._outside = ~part.train_mask.cpu()
        self._labelled = part.val_mask.cpu()
        targets = task.targets(data).cpu()
        self._targets = targets[self._labelled]
        self._full = [self.predictions(one) for one in outputs]
        spread = task.answers.spread([one[self._labelled] for one in self._full], self._targets)
        self._spread = spread
        draw = task.answers.drawer(self._full, self._labelled, targets)
        generator = torch.Generator().manual_seed(_SEED)
        self._drawn = [draw(generator)[self._outside] for _ in range(_DRAWS)]
        self._drawn_full = [self._on_draws(one) for one in self._full]
        every = self._labelled if labelled is None else labelled.cpu()
        self._count = int(every.sum())  # an item is in the same group in all splits
        self._num_groups = max(2, min(_GROUPS, self._count // _LEAST_ITEMS))
        places = torch.arange(self._count)[self._labelled[every]]
        self._groups = places % self._num_groups
        self._known_full = [self._without_groups(one) for one in self._full]

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return what is kept of the outputs of a training."""
        return outputs.detach().cpu()

    def flips(self, predictions: Sequence[Tensor]) -> float:
        """Return how much the predictions outside training change, in percent."""
        changed = self._task.answers.changed
        outside = self._outside
        return fmean(
            changed(before[outside], after[outside], self._spread)
            for before, after in zip(self._full, predictions, strict=False)
        )

    def evidence(self, predictions: Sequence[Tensor]) -> DropEvidence:
        """Return expected and measured drops of some quantized trainings."""
        drops = torch.stack(
            [
                self._drop(full, self._on_draws(after))
                for full, after in zip(self._drawn_full, predictions, strict=False)
            ]
        )  # [trainings, draws]
        known = torch.stack(
            [
                self._drop(full, self._without_groups(after))
                for full, after in zip(self._known_full, predictions, strict=False)
            ]
        )  # [trainings, 1 + groups]
        measured, without = known[:, 0], known[:, 1:]
        groups, count = self._num_groups, self._count
        # What a group adds: the mean of all is the drop, exactly where a metric is a mean.
        added = (groups * measured[:, None] - (groups - 1) * without).sum(dim=0)
        return DropEvidence(
            expected=tuple(drops.mean(dim=1).tolist()),
            measured=tuple(measured.tolist()),
            deviation=float(drops.mean(dim=0).std()),
            nodes=count,
            lost={at: float(one) * count / groups / 100 for at, one in enumerate(added) if one},
            max_groups=groups,
        )

    def _on_draws(self, outputs: Tensor) -> Tensor:
        outside = outputs[self._outside]
        return torch.tensor(
            [self._task.metric(outside, targets) for targets in self._drawn], dtype=torch.float64
        )

    def _without_groups(self, outputs: Tensor) -> Tensor:
        """Return the metric on all labelled items, then on those outside of each group."""
        known, metric = outputs[self._labelled], self._task.metric
        values = [metric(known, self._targets)]
        for group in range(self._num_groups):
            others = self._groups != group
            values.append(metric(known[others], self._targets[others]))
        return torch.tensor(values, dtype=torch.float64)

    def _drop(self, full: Tensor, quantized: Tensor) -> Tensor:
        return full - quantized if self._task.metric.higher_is_better else quantized - full
