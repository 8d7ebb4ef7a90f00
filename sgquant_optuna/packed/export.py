"""Packed models as files: one safetensors file with weights, ranges, input and provenance."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch_geometric.data import Data

from sgquant_optuna.attachment.model_copies import copy_model
from sgquant_optuna.attachment.quantized_model import bind, detach
from sgquant_optuna.exceptions import PackingError, SgquantError
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.forward_pass import Forward, forward
from sgquant_optuna.packed.container import read_container, write_container
from sgquant_optuna.packed.model_file import KIND, ModelContents
from sgquant_optuna.packed.packed_model import PackedModel
from sgquant_optuna.quantization.memory import FeatureLayout

TOLERANCE = 1e-5
"""Largest difference of scores from the fake-quantized model's, relative to their largest."""


@dataclass(frozen=True)
class ExportedModel:
    """Description of a written file.

    Args:
        path:
            Path of the file.
        file_nbytes:
            Size of the file.
        stored_nbytes:
            Bytes of packed features, attention and bucket ids, by the honest accounting.
        score_difference:
            Largest difference of a score from the fake-quantized model's, relative to the
            largest score.
    """

    path: Path
    file_nbytes: int
    stored_nbytes: int
    score_difference: float


def export_packed(
    model: nn.Module,
    data: Data,
    path: str | Path,
    *,
    layout: FeatureLayout,
    forward: Forward = forward,
    provenance: Mapping[str, Any] | None = None,
) -> ExportedModel:
    """Pack a quantized model with the features of its graph into one file.

    The packed model is run before it is written: it must give the scores of the fake-quantized
    one and take the bytes of the honest accounting.

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

    Raises:
        GraphError:
            If the graph does not fit the layout.
        ModelError:
            If the model uses the graph's features outside its quantized layers.
        PackingError:
            If the packed model gives other scores or takes other bytes.
        ValueError:
            If the file cannot be written.
    """
    path = Path(path)
    contents = ModelContents.of(model, data, layout)
    fields = {**contents.fields, "provenance": {**_circumstances(), **(provenance or {})}}
    plain = None if fields["model"] is not None else detach(copy_model(model))
    packed = PackedModel(fields, contents.tensors, plain, forward=forward)
    difference = _compare(model, packed, data, forward)
    stored = sum(packed.stored_nbytes.values())
    if stored != packed.memory.memory_bytes:
        raise PackingError(
            f"packed model: the accounting says {packed.memory.memory_bytes:.0f} bytes, the "
            f"model stores {stored}"
        )
    _write(path, fields, contents.tensors)
    return ExportedModel(path, path.stat().st_size, stored, difference)


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
        PackingError:
            If the file is cut, altered, of another version, not ours, or its parts do not fit one
            another.
    """
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


def _write(path: Path, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the file under another name, and rename it once it is whole."""
    unfinished = path.with_name(f"{path.name}.part")
    try:
        try:
            write_container(unfinished, KIND, fields, tensors)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: cannot write it ({reason})") from error


@torch.no_grad()
def _compare(model: nn.Module, packed: PackedModel, data: Data, forward: Forward) -> float:
    graph = FixedGraph(data)
    bind(model, graph.data)
    with graph.speed_up(model) as columns:
        expected = forward(model.eval(), columns)
    bind(model, data)
    found = packed(data)
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    changed = int((found.argmax(dim=1) != expected.argmax(dim=1)).sum())
    if not difference <= TOLERANCE and changed:
        raise PackingError(
            f"packed model: expected the scores of the fake-quantized one, got a relative "
            f"difference of {difference:.1g} that changes the class of {changed} nodes"
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
