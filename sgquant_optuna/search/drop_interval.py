"""The interval of a drop on test items, over trainings and items."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sgquant_optuna.graph.node_types import Graph
from sgquant_optuna.graph.tasks.metrics import Metric, right_answers
from sgquant_optuna.graph.tasks.task import Task

_RANGE = torch.tensor([0.025, 0.975], dtype=torch.float64)


class OpenedTest:
    """Outputs of paired trainings for test items, which several splits may choose otherwise.

    Args:
        task:
            Items and metric.
        graphs:
            Graph of each training, with its ``test_mask``.
        full:
            Outputs of full precision for all items, of each training.
        quantized:
            Outputs of the quantized model for all items, paired by training.

    Raises:
        GraphError:
            If the target of a test item is unknown.
    """

    def __init__(
        self,
        task: Task,
        graphs: Sequence[Graph],
        full: Sequence[Tensor],
        quantized: Sequence[Tensor],
    ) -> None:
        self._metric = task.metric
        self._masks = [task.part(graph).test_mask for graph in graphs]
        self._targets = [
            task.labels(graph, mask) for graph, mask in zip(graphs, self._masks, strict=True)
        ]
        self._full, self._quantized = (
            [one[mask] for one, mask in zip(of, self._masks, strict=True)]
            for of in (full, quantized)
        )
        self._all = full, quantized, task.targets(graphs[0])
        self._is_shared = all(graph is graphs[0] for graph in graphs)

    @property
    def full_precision(self) -> tuple[float, ...]:
        """Test metric of full precision in each training."""
        return tuple(map(self._metric, self._full, self._targets))

    @property
    def quantized(self) -> tuple[float, ...]:
        """Test metric of the quantized model in each training."""
        return tuple(map(self._metric, self._quantized, self._targets))

    def drop_interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the mean drop over trainings and test items."""
        if self._is_shared:
            return drop_interval(self._full, self._quantized, self._targets[0], self._metric)
        return _interval_of_metric(*self._all, self._metric, self._masks)


def drop_interval(
    full: Sequence[Tensor], quantized: Sequence[Tensor], targets: Tensor, metric: Metric
) -> tuple[float, float]:
    """Return the 95 % interval of the mean drop over trainings and items, both drawn anew.

    Args:
        full:
            Outputs of full precision for the test items, one for each training.
        quantized:
            Outputs of the quantized model for the same, paired by training.
        targets:
            Targets of the test items.
        metric:
            Metric whose drop is meant.

    Reference:
        Owen (2007), "The pigeonhole bootstrap".
    """
    if metric is right_answers:
        right = [torch.stack([one.argmax(1) == targets for one in of]) for of in (full, quantized)]
        return interval_of_sums((right[0].int() - right[1].int()) * 100)
    return _interval_of_metric(full, quantized, targets, metric)


def interval_of_sums(drops: Tensor, *, draws: int = 2000) -> tuple[float, float]:
    """Return the interval where the drop is a mean over items.

    Args:
        drops:
            Drop at each item in each training, ``[S, n]``.
        draws:
            Number of draws.
    """
    generator = torch.Generator().manual_seed(0)
    drops = drops.double().cpu()
    trainings, nodes = drops.shape
    means = []
    for _ in range(draws):
        # Poisson weights are those of multinomial draws but for their sum.
        by_node = torch.poisson(torch.ones(nodes, dtype=torch.float64), generator=generator)
        rows = torch.randint(trainings, (trainings,), generator=generator)
        means.append((drops[rows] @ by_node).mean() / by_node.sum())
    low, high = torch.stack(means).quantile(_RANGE)
    return float(low), float(high)


def _interval_of_metric(
    full: Sequence[Tensor],
    quantized: Sequence[Tensor],
    targets: Tensor,
    metric: Metric,
    masks: Sequence[Tensor] | None = None,
    *,
    draws: int = 300,
) -> tuple[float, float]:
    """Draw items: one that is drawn counts in each training that tests it, all by default."""
    generator = torch.Generator().manual_seed(0)
    full, quantized = ([one.cpu() for one in of] for of in (full, quantized))
    targets = targets.cpu()
    everywhere = torch.ones(len(targets), dtype=torch.bool)
    tests = [everywhere for _ in full] if masks is None else [mask.cpu() for mask in masks]
    means: list[float] = []
    while len(means) < draws:
        items = torch.randint(len(targets), (len(targets),), generator=generator)
        rows = torch.randint(len(full), (len(full),), generator=generator).tolist()
        tested = [items[tests[row][items]] for row in rows]
        if not all(map(len, tested)):
            continue
        drops = [
            metric.drop(*(metric(of[row][at], targets[at]) for of in (full, quantized)))
            for row, at in zip(rows, tested, strict=True)
        ]
        means.append(sum(drops) / len(drops))
    low, high = torch.tensor(means, dtype=torch.float64).quantile(_RANGE)
    return float(low), float(high)
