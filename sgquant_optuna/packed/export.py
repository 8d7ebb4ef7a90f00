"""Packed models as files: one safetensors file with weights, ranges, input and provenance."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from sgquant_optuna.attachment.quantized_model import bind, detach, site_quantizers
from sgquant_optuna.exceptions import GraphError, ModelError, PackingError, SgquantError
from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets
from sgquant_optuna.graph.degree_edges import check_degree_edges
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.forward_pass import Forward, OfType, forward
from sgquant_optuna.graph.model_copies import copy_model
from sgquant_optuna.graph.node_types import Graph
from sgquant_optuna.graph.sparse_features import SparseFeatures
from sgquant_optuna.packed.container import read_container, write_container
from sgquant_optuna.packed.input_placeholder import RawFeaturesError
from sgquant_optuna.packed.model_file import KIND, ModelContents
from sgquant_optuna.packed.model_packing import contents_of
from sgquant_optuna.packed.packed_model import PackedModel
from sgquant_optuna.packed.packed_types import buckets_of_all
from sgquant_optuna.quantization.memory import FeatureLayout
from sgquant_optuna.storage.out_files import replacing

TOLERANCE = 1e-4
"""Largest difference of scores from the fake-quantized model's, relative to their largest.

Sums run in the same order, so most scores are equal to the last bit. A wrong model, or a hidden
feature that gets another code, differs by more.
"""


@dataclass(frozen=True)
class ExportedModel:
    """Description of a written file.

    Args:
        path:
            Path of the file.
        file_nbytes:
            Size of the file.
        stored_nbytes:
            Bytes of packed features, attention and bucket ids on the graph of the calibration, by
            the honest accounting; a file without features does not hold them.
        exact_nbytes:
            Bytes of the exact features beyond them, where the model uses the graph's features
            outside of its quantized layers.
        score_difference:
            Largest difference of a score from the fake-quantized model's, relative to the
            largest score.
    """

    path: Path
    file_nbytes: int
    stored_nbytes: int
    exact_nbytes: int
    score_difference: float


def export_packed(
    model: nn.Module,
    data: Graph,
    path: str | Path,
    *,
    layout: FeatureLayout,
    forward: Forward = forward,
    provenance: Mapping[str, Any] | None = None,
    with_features: bool = True,
    degree_edges: Sequence[int] | None = None,
) -> ExportedModel:
    """Pack a quantized model into one file, with the features of its graph or alone.

    Before the file gets its name it is loaded again and run: it must give the scores of the
    fake-quantized model, to a relative :data:`TOLERANCE`, and take the bytes of the honest
    accounting.

    Args:
        model:
            Model with calibrated quantizers and chosen widths (``attach``, ``calibrate``,
            ``set_bit_widths``, or the result of ``QuantizationObjective.finetune``).
        data:
            Graph of the calibration, with ``degree_bucket`` if there are several.
        path:
            File to write.
        layout:
            Result of ``calibrate`` (``QuantizationObjective.layout``).
        forward:
            Function that calls the model with the graph.
        provenance:
            Origin of the model and measurements of it, ready for JSON.
        with_features:
            Whether the file holds the features of the graph. Without them it holds the model
            alone, which is called with any graph.
        degree_edges:
            Degrees at which the degree buckets begin, as :class:`.AddDegreeBuckets` got them.
            Without them, another graph needs a column ``degree_bucket`` of its own.

    Raises:
        GraphError:
            If the graph does not fit the layout, or its degree buckets are not those of the edges,
            or without features, if there is a range for each node.
        ModelError:
            If weights or features are not float32, or the features are changed in place.
        PackingError:
            If the packed model gives other scores or takes other bytes.
        ValueError:
            If the file cannot be written.
    """
    if isinstance(data, HeteroData) and not isinstance(forward, OfType):
        raise ModelError(
            "forward: expected one that gives the scores of one node type, got another; say "
            "forward=task.answering(forward), with the task of the model"
        )
    edges = check_degree_edges(degree_edges or ())
    _check_buckets(data, layout, edges)
    source = Source(model, FixedGraph(data), layout, forward, edges)
    told = {**_circumstances(), **(provenance or {})}
    exported = write_packed(source, path, told, with_features=with_features)
    bind(model, data)
    return exported


def write_packed(
    source: Source,
    path: str | Path,
    provenance: Mapping[str, Any],
    *,
    fast: bool | None = None,
    with_features: bool = True,
) -> ExportedModel:
    """Write a file as :func:`export_packed` does.

    Args:
        source:
            Model with its graph.
        path:
            File to write.
        provenance:
            Origin of the model, ready for JSON.
        fast:
            Whether to pack hidden features by the compiled kernel; by default where installed.
        with_features:
            Whether the file holds the features of the graph.
    """
    with replacing(path) as part:
        packed, found = _write(source, part, provenance, fast=fast)
        if not with_features:
            packed, found = _write_alone(source, part, provenance, fast=fast)
        difference = _difference(found, source.scores)
        stored = sum(packed.stored_nbytes.values())
        if stored != packed.memory.memory_bytes:
            raise PackingError(
                f"packed model: the accounting says {packed.memory.memory_bytes:.0f} bytes, the "
                f"model stores {stored}"
            )
        size = part.stat().st_size
    return ExportedModel(Path(path), size, stored, packed.exact_nbytes, difference)


def load_packed(
    path: str | Path, model: nn.Module | None = None, *, forward: Forward = forward
) -> PackedModel:
    """Open a packed model.

    Args:
        path:
            File of :func:`export_packed` or ``sgquant export``.
        model:
            Instance of the architecture, with any weights; may be left out for the models of the
            paper.
        forward:
            Function that calls the model with the graph.

    Raises:
        ModelError:
            If the model is of another architecture, or is needed and missing.
        TypeError:
            If the model is no instance of a module.
        PackingError:
            If the file is cut, altered, of another version, not ours, or its parts do not fit one
            another.
    """
    if isinstance(model, type):
        raise TypeError(
            f"model: expected an instance, got the class {model.__name__}; call it with the "
            f"arguments of the model that was exported"
        )
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(
            f"model: expected an instance of torch.nn.Module, got {type(model).__name__}"
        )
    fields, tensors = read_container(path, KIND)
    if not isinstance(fields.get("provenance"), dict):
        found = type(fields.get("provenance")).__name__
        raise PackingError(f"{path}: expected an object as provenance, got {found}")
    try:
        return PackedModel(fields, tensors, model, forward=forward)
    except PackingError as error:
        raise PackingError(f"{path}: {error}") from error
    except SgquantError:
        raise
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise PackingError(f"{path}: its header does not fit its tensors") from error


class Source:
    """The fake-quantized model that is packed, as it is called with its graph.

    Args:
        model:
            Model with calibrated quantizers and chosen widths.
        graph:
            Graph of the calibration.
        layout:
            Result of ``calibrate``.
        forward:
            Function that calls the model with the graph.
        degree_edges:
            Degrees at which the degree buckets begin, if they are known.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: FixedGraph,
        layout: FeatureLayout,
        forward: Forward,
        degree_edges: Sequence[int] = (),
    ) -> None:
        self.model, self.graph, self.layout, self.forward = model, graph, layout, forward
        self.degree_edges = tuple(degree_edges)

    @cached_property
    def scores(self) -> Tensor:
        """Scores of the model, ``[N, C]``."""
        return self._run(self.model)

    def features_of_call(self, name: str, call: int) -> Tensor | None:
        """Return what a call of a layer takes, before it is quantized.

        Args:
            name:
                Name of the layer's site.
            call:
                Number of the call.

        Returns:
            Features, ``[N, F]`` float32; ``None`` if they are of other rows or another type.
        """
        model, seen = copy_model(self.model), []

        def look(quantizer: nn.Module, args: tuple[Any, ...]) -> None:
            seen.append(args[0])

        dict(site_quantizers(model))[name].register_forward_pre_hook(look)
        self._run(model)
        x = seen[call]
        x = x.dense() if isinstance(x, SparseFeatures) else x
        fits = x.dim() == 2 and len(x) == self.layout.num_nodes and x.dtype == torch.float32
        return x if fits else None

    @torch.no_grad()
    def _run(self, model: nn.Module) -> Tensor:
        was_training = model.training
        bind(model, self.graph.data)
        try:
            with self.graph.speed_up(model) as columns:
                return self.forward(model.eval(), columns)
        finally:
            model.train(was_training)


def _write(
    source: Source, path: Path, provenance: Mapping[str, Any], *, fast: bool | None
) -> tuple[PackedModel, Tensor]:
    """Write the file with all that the model needs of ``x``; return what it loads and gives.

    Running shows what is needed: first what layers take that is computed of ``x`` alone, which is
    stored packed, and if that is not enough, ``x`` itself.
    """
    constants: dict[tuple[str, int], Tensor] = {}
    exact = False
    while True:
        contents = contents_of(
            source.model,
            source.graph.data,
            source.layout,
            answers=source.forward.node_type if isinstance(source.forward, OfType) else None,
            constants=constants,
            exact=exact,
            degree_edges=source.degree_edges,
        )
        packed = _written(contents, source, path, provenance, fast=fast)
        try:
            return packed, packed(source.graph.data)
        except RawFeaturesError as error:
            if exact or isinstance(source.graph.data, HeteroData):
                raise
            key = (error.site, error.call)
            features = None
            if error.site is not None and key not in constants:
                features = source.features_of_call(error.site, error.call)
            if error.site is None or features is None:
                exact, constants = True, {}
            else:
                constants[error.site, error.call] = features


def _write_alone(
    source: Source, path: Path, provenance: Mapping[str, Any], *, fast: bool | None
) -> tuple[PackedModel, Tensor]:
    """Write the file again without what it holds of the graph; return what that gives on it."""
    fields, tensors = read_container(path, KIND)
    # The tensors are mapped from the file that is written now.
    contents = ModelContents(fields, {name: value.clone() for name, value in tensors.items()})
    alone = _written(contents.without_graph(), source, path, provenance, fast=fast)
    packed = alone.on(source.graph.data)
    return packed, packed(source.graph.data)


def _written(
    contents: ModelContents,
    source: Source,
    path: Path,
    provenance: Mapping[str, Any],
    *,
    fast: bool | None,
) -> PackedModel:
    """Write a file and open it."""
    fields = {**contents.fields, "provenance": provenance}
    write_container(path, KIND, fields, contents.tensors)
    plain = None if fields["model"] is not None else detach(copy_model(source.model))
    return PackedModel(*read_container(path, KIND), plain, forward=source.forward, fast=fast)


def _check_buckets(data: Graph, layout: FeatureLayout, edges: tuple[int, ...]) -> None:
    """Refuse degree edges that did not make the degree buckets of a graph."""
    if not edges:
        return
    if len(edges) != layout.num_buckets - 1:
        raise GraphError(
            f"degree_edges: expected {layout.num_buckets - 1}, one less than the layout has "
            f"degree buckets, got {len(edges)}"
        )
    bucket = buckets_of_all(data)
    if len(bucket) == data.num_nodes:
        others = int((buckets_of_all(AddDegreeBuckets(edges)(copy.copy(data))) != bucket).sum())
        if others:
            raise GraphError(
                f"degree_edges: expected those of the column degree_bucket, got {edges}, by which "
                f"{others} nodes have another bucket"
            )


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of scores, relative to the largest score."""
    largest = expected.abs().max().clamp(min=1e-30)
    difference = float((found - expected).abs().max() / largest)
    if not difference <= TOLERANCE:  # NaN, too
        changed = int((found.argmax(dim=-1) != expected.argmax(dim=-1)).sum())
        raise PackingError(
            f"packed model: expected the scores of the fake-quantized one to a relative "
            f"{TOLERANCE:g}, got a difference of {difference:.1g}, which changes the class of "
            f"{changed} nodes; a model that gives other scores in each pass cannot be packed"
        )
    return difference


def _circumstances() -> dict[str, Any]:
    versions = {}
    for package in ("sgquant-optuna", "torch", "torch-geometric", "safetensors"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions}
