"""Measures a packed model against the float32 model of the same weights, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from sgquant_optuna.exceptions import GraphError, PackingError
from sgquant_optuna.graph.datasets import load_graph
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.forward_pass import Forward, forward
from sgquant_optuna.graph.node_types import Graph
from sgquant_optuna.graph.splits import choose_split, has_splits
from sgquant_optuna.graph.tasks.task import Task
from sgquant_optuna.graph.training import NODE_CLASSIFICATION
from sgquant_optuna.packed.export import load_packed
from sgquant_optuna.packed.model_file import ModelContents
from sgquant_optuna.packed.peak_memory import Kind, peak_nbytes

_LARGEST_SEED = 2**63 - 1  # of torch
_LONGEST_NAME = 100  # characters


@dataclass(frozen=True)
class OwnModel:
    """A user's own model with its graph, as a file alone does not tell them.

    Args:
        model:
            Instance of the architecture, with any weights.
        data:
            Graph with targets and masks.
        forward:
            Function that calls the model with the graph.
        task:
            Items and metric.
    """

    model: nn.Module
    data: Graph
    forward: Forward = forward
    task: Task = NODE_CLASSIFICATION


@dataclass(frozen=True)
class Evaluation:
    """Measurements of a packed model. Accuracies are in percent, or in the unit of the metric.

    Args:
        provenance:
            Origin of the model, as the file says it.
        validation_accuracy:
            Accuracy of the packed model on validation nodes, measured now.
        test_accuracy:
            Accuracy of the packed model on test nodes, measured now; ``None`` by default.
        float32_validation_accuracy:
            Accuracy of the same weights without any quantizer on validation nodes, measured now.
        float32_test_accuracy:
            The same on test nodes; ``None`` by default.
        stored_nbytes:
            Packed bytes of every site and of the bucket ids.
        honest_nbytes:
            Bytes of the same by the honest accounting.
        full_precision_nbytes:
            Bytes of the same values in float32.
        file_nbytes:
            Size of the file.
        file_parts:
            Bytes of each part of the file.
        peaks:
            Peak memory of one inference in bytes, ``"packed"`` and ``"float32"`` on dense
            features; ``None`` where the system does not measure it.
        time_pyg:
            Time of the packed inference, divided by that of the float32 model as PyG runs it.
        time_sparse:
            Time of the packed inference, divided by that of the float32 model with sparse features
            and sparse products.
        repeats:
            Number of interleaved runs, of which the ratios are medians.
        metric:
            Name, unit and direction of the metric.
        holds_features:
            Whether the features are in the file; otherwise they were packed for the measurement.
    """

    provenance: Mapping[str, Any]
    validation_accuracy: float
    test_accuracy: float | None
    float32_validation_accuracy: float
    float32_test_accuracy: float | None
    stored_nbytes: Mapping[str, int]
    honest_nbytes: int
    full_precision_nbytes: int
    file_nbytes: int
    file_parts: Mapping[str, int]
    peaks: Mapping[Kind, int] | None
    time_pyg: float
    time_sparse: float
    repeats: int
    metric: Mapping[str, Any]
    holds_features: bool


@torch.no_grad()
def evaluate_packed(
    path: str | Path,
    root: str | Path | None = None,
    *,
    own: OwnModel | None = None,
    test: bool = False,
    repeats: int = 7,
) -> Evaluation:
    """Measure a file of ``sgquant export``.

    Args:
        path:
            File to measure.
        root:
            Folder of data sets.
        own:
            Model and graph of the file, where it is none of a named model and data set; their
            peak memory is not measured.
        test:
            Whether to measure the accuracy on test nodes too.
        repeats:
            Number of interleaved timed runs.

    Raises:
        GraphError:
            If the graph is not that of the file, or has no test nodes.
        PackingError:
            If the file is cut, altered, or not of ``sgquant export``.
    """
    task = NODE_CLASSIFICATION if own is None else own.task
    call = forward if own is None else own.forward
    opened = load_packed(path, None if own is None else own.model, forward=call)
    provenance = opened.fields["provenance"]
    data = _graph(path, provenance, root) if own is None else own.data
    packed = opened if opened.holds_features else opened.on(data)
    scores = packed(data)
    contents = ModelContents.read(path, verify=False)
    model = contents.plain_model(None if own is None else own.model).eval()
    plain = task.answering(call)(model, data)
    time_pyg, time_sparse = _times(packed, model, data, repeats, call)
    parts = _part_nbytes(contents.tensors)
    size = Path(path).stat().st_size
    return Evaluation(
        provenance=provenance,
        validation_accuracy=_score(task, model, scores, data, "val_mask"),
        test_accuracy=_score(task, model, scores, data, "test_mask") if test else None,
        float32_validation_accuracy=_score(task, model, plain, data, "val_mask"),
        float32_test_accuracy=_score(task, model, plain, data, "test_mask") if test else None,
        stored_nbytes=packed.stored_nbytes,
        honest_nbytes=int(packed.memory.memory_bytes),
        full_precision_nbytes=int(packed.memory.full_precision_bytes),
        file_nbytes=size,
        file_parts={**parts, "header": size - sum(parts.values())},
        peaks=peak_nbytes(path, data) if own is None else None,
        time_pyg=time_pyg,
        time_sparse=time_sparse,
        repeats=repeats,
        metric=task.describe_metric(),
        holds_features=opened.holds_features,
    )


def _graph(path: str | Path, provenance: Mapping[str, Any], root: str | Path | None) -> Data:
    """Load the graph that a file names; what else it says may be anything."""
    name, seed = provenance.get("dataset"), provenance.get("seed")
    split = seed if isinstance(seed, int) and not isinstance(seed, bool) else None
    if split is not None and abs(split) > _LARGEST_SEED:
        split = None
    if isinstance(name, str) and len(name) <= _LONGEST_NAME:
        data = load_graph(
            name,
            root,
            seed=split or 0,
            normalize_features=provenance.get("normalize_features") is True,
        )
        data = on_its_split(data, provenance)
        if split is not None or "split_seed" not in data:  # the split of some graphs is public
            return data
    plan = provenance.get("plan")
    made = "made from Python"
    if isinstance(plan, Mapping) and plan.get("own") is not None:
        made = "of its user's own models"
    raise PackingError(
        f"{path}: expected a file of `sgquant export` for a known data set, got one {made}, which "
        f"does not name its data set and the seed of its split; give the Python file of your "
        f"model and graph by --study, or load_packed() it and call it with your graph"
    )


def _score(task: Task, model: nn.Module, scores: Tensor, data: Graph, name: str) -> float:
    """Return the metric of the items of a mask."""
    mask = task.part(data).get(name)
    if mask is None or not bool(mask.any()):
        raise GraphError(f"column {name}: expected at least one {task.items}, got none")
    targets = task.labels(data, mask)
    return float(task.metric(task.check_outputs(model, scores, task.targets(data))[mask], targets))


def _times(
    packed: nn.Module, model: nn.Module, data: Graph, repeats: int, call: Forward
) -> tuple[float, float]:
    """Return the time of the packed model, divided by that of PyG and of sparse products."""
    with FixedGraph(data).speed_up(model) as graph:
        time_sparse = _ratio(lambda: call(model, graph), lambda: packed(data), repeats)
    return _ratio(lambda: call(model, data), lambda: packed(data), repeats), time_sparse


def _part_nbytes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Add up the bytes of the tensors of a file by the part that they belong to."""
    names = {
        "weights": "weights",
        "input": "input features",
        "constant": "input features",
        "exact": "exact features",
        "bucket": "bucket ids",
    }
    parts: dict[str, int] = {}
    for name, tensor in tensors.items():
        part = names.get(name.split(".")[0], "ranges")
        parts[part] = parts.get(part, 0) + tensor.nbytes
    return parts


def _ratio(
    reference: Callable[[], object], candidate: Callable[[], object], repeats: int
) -> float:
    """Return the median of the candidate's time divided by the reference's; both run in turn."""
    reference()
    candidate()
    ratios = []
    for _ in range(repeats):
        start = time.perf_counter()
        reference()
        middle = time.perf_counter()
        candidate()
        ratios.append((time.perf_counter() - middle) / (middle - start))
    return median(ratios)


def on_its_split(data: Graph, provenance: Mapping[str, Any]) -> Graph:
    """Return a graph with the split that a packed file was measured on, where it has several."""
    split = provenance.get("split")
    return choose_split(data, split) if has_splits(data) and isinstance(split, int) else data
