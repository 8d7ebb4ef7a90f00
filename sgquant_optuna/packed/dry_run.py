"""The export of a model tried before its search, so that nobody learns after hours of it."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch_geometric.data import Data

from sgquant_optuna.exceptions import ExportWarning
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.node_types import Graph, device_of
from sgquant_optuna.packed.export import ExportedModel, Source, write_packed

_FEW_NODES = 4096
"""Nodes at which an export is as fast as calibration; a part of a larger graph is tried first."""
_FEW_EDGES = 256


def try_export(graph: FixedGraph, data: Graph, quantized: Callable[[FixedGraph], Source]) -> None:
    """Export to a temporary file, and warn in one line of what is wrong or takes more bytes.

    Of a large graph a part is tried, and the whole where that fails: a model may need all nodes.
    Packed models run on the CPU, so a graph on another device is not tried. The random state is
    restored.

    Args:
        graph:
            Graph of the calibration.
        data:
            The same graph.
        quantized:
            Function that returns the model, calibrated on a graph, with chosen widths.
    """
    if device_of(data).type != "cpu":
        return
    with torch.random.fork_rng(devices=[]):
        is_large = isinstance(data, Data) and len(data.x) > _FEW_NODES
        if is_large and _works_on_a_part(data, quantized):
            return
        source = quantized(graph)
        found = _trouble(source)
    if found is not None:
        warnings.warn(
            f"export of {type(source.model).__name__}: {' '.join(found.split())}",
            ExportWarning,
            stacklevel=3,  # where the objective is made
        )


def _works_on_a_part(data: Graph, quantized: Callable[[FixedGraph], Source]) -> bool:
    try:
        part = data.subgraph(data.edge_index[:, :_FEW_EDGES].unique())
        return _export(quantized(FixedGraph(part))).exact_nbytes == 0
    except Exception:  # it may be the part that does not work
        return False


def _trouble(source: Source) -> str | None:
    try:
        done = _export(source)
    except Exception as error:  # whatever it is, the search itself is right
        if isinstance(error.__cause__, OSError):  # a full disk tells nothing of the model
            return None
        return (
            f"{error} (the search is right, but what it finds cannot be packed; its bit widths "
            f"can be exported)"
        )
    if done.exact_nbytes:
        return (
            f"the model uses the graph's features outside of its quantized layers, so a packed "
            f"file holds them exactly as well: {done.exact_nbytes} bytes that the memory of the "
            f"trials does not count; give them to a quantized layer, or expect as much more"
        )
    return None


def _export(source: Source) -> ExportedModel:
    with tempfile.TemporaryDirectory() as folder:
        # Importing the compiled kernel takes longer than all else.
        return write_packed(source, Path(folder) / "model", {}, fast=False)
