"""Full precision on several splits of one graph: each training has its own labelled items."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from sgquant_optuna.graph.fingerprint import graph_fingerprint
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.node_types import Graph
from sgquant_optuna.graph.tasks.task import Task
from sgquant_optuna.search.reference import Reference, reference_of
from sgquant_optuna.study.drop_evidence import DropEvidence


class SplitReference:
    """References of all splits as one, whose drops are means over the trainings.

    A split is compared with the full-precision trainings of its own training items alone: others
    have seen the labels that it measures on. An item that several splits label counts as one item
    where the luck of the items is judged.

    Args:
        task:
            Items, kind of answers and metric.
        trainings:
            Outputs for all items, and validation metric, of each full-precision training.
        graphs:
            Graph of each split, with masks ``[I]``.
        splits:
            Number of the split of each training.
    """

    def __init__(
        self,
        task: Task,
        trainings: Sequence[tuple[Tensor, float]],
        graphs: Sequence[Graph],
        splits: Sequence[int],
    ) -> None:
        self.accuracy = fmean(metric for _, metric in trainings)
        labelled = torch.stack([task.part(graph).val_mask for graph in graphs]).any(dim=0)
        self._places = {
            split: [at for at, one in enumerate(splits) if one == split]
            for split in dict.fromkeys(splits)
        }
        self._references: dict[int, Reference] = {
            split: reference_of(task, [trainings[at] for at in places], graphs[split], labelled)
            for split, places in self._places.items()
        }

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return what is kept of the outputs of a training; all splits keep the same."""
        return next(iter(self._references.values())).predictions(outputs)

    def flips(self, predictions: Sequence[Tensor]) -> float:
        """Return how many predictions outside training change, in percent."""
        parts = self._parts(predictions)
        told = [len(part) * self._references[split].flips(part) for split, part in parts]
        return sum(told) / len(predictions)

    def evidence(self, predictions: Sequence[Tensor]) -> DropEvidence:
        """Return expected and measured drops of some quantized trainings."""
        parts = self._parts(predictions)
        return DropEvidence.joined(
            [self._references[split].evidence(part) for split, part in parts]
        )

    def _parts(self, predictions: Sequence[Tensor]) -> list[tuple[int, list[Tensor]]]:
        """Return the predictions of each split that has any yet."""
        found = [
            (split, [predictions[at] for at in places if at < len(predictions)])
            for split, places in self._places.items()
        ]
        return [(split, part) for split, part in found if part]


def reference_on(
    task: Task,
    trainings: Sequence[tuple[Tensor, float]],
    graphs: Sequence[FixedGraph],
    splits: Sequence[int],
) -> Reference:
    """Return the reference of trainings on one split, or on several.

    Args:
        task:
            Items, kind of answers and metric.
        trainings:
            Outputs for all items, and validation metric, of each full-precision training.
        graphs:
            Graph of each split.
        splits:
            Number of the split of each training, where there are several.
    """
    if len(graphs) == 1:
        return reference_of(task, trainings, graphs[0].data)
    return SplitReference(task, trainings, [one.data for one in graphs], splits)


def models_on_graphs(
    models: Sequence[nn.Module], graphs: Sequence[FixedGraph]
) -> list[tuple[nn.Module, FixedGraph]]:
    """Return each model with the graph that it is finetuned on.

    Raises:
        ValueError:
            If there are several splits, and not one model for each.
    """
    if len(graphs) == 1:
        return [(model, graphs[0]) for model in models]
    if len(models) != len(graphs):
        raise ValueError(
            f"models: expected one for each of the {len(graphs)} splits with split='all', got "
            f"{len(models)}"
        )
    return list(zip(models, graphs, strict=True))


def splits_fingerprint(graphs: Sequence[Graph], task: Task) -> dict[str, Any]:
    """Return the fingerprint of a graph without its test labels, with those of all its splits."""
    (first, *_) = found = [graph_fingerprint(one, task.columns, task.node_type) for one in graphs]
    if len(found) == 1:
        return first
    joined = " ".join(one["hash"] for one in found)
    digest = hashlib.sha256(joined.encode()).hexdigest()[:16]
    return {**first, "hash": digest, "splits": len(found)}
