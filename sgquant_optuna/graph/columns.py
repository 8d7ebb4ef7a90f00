"""Columns of a graph: found, or refused in one line that says what was expected."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch_geometric.data import Data, HeteroData

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.sparse_features import SparseFeatures

MASKS = ("train_mask", "val_mask", "test_mask")
"""Columns of the splits."""


def check_features_and_edges(data: Data) -> None:
    """Check type, features and edges of a graph.

    Args:
        data:
            Graph with ``x`` (``[N, F]`` float) and ``edge_index`` (``[2, E]`` int64) or ``adj_t``
            (``[N, N]`` sparse).

    Raises:
        GraphError:
            If it is no graph of nodes and edges of one type, a column is missing or has another
            type or shape, a feature is not finite or so large that a norm overflows, or an edge
            ends outside the nodes.
    """
    check_type(data)
    x = column(data, "x")
    advice = "data.x = data.x.float()" if x.dim() == 2 and not x.is_complex() else None
    check_column(x.dim() == 2 and x.is_floating_point(), "x", "float features [N, F]", x, advice)
    check_finite_features(x)
    check_edges(data, x.shape[0])


def check_edges(data: Data, num_nodes: int) -> None:
    """Check ``edge_index``, or ``adj_t`` in a graph without one, as those of N nodes.

    Raises:
        GraphError:
            If both are missing, or one has another type or shape or ends outside the nodes.
    """
    if "edge_index" not in data and "adj_t" in data:
        adj_t: Any = data.adj_t
        sizes = [adj_t.size(0), adj_t.size(1)]
        check_column(sizes == [num_nodes] * 2, "adj_t", f"[{num_nodes}, {num_nodes}]", str(sizes))
    else:
        _check_edges(column(data, "edge_index"), num_nodes)


def check_type(data: object, *, hetero: bool = False) -> None:
    """Check that this is one graph, whose nodes and edges are of one type.

    Args:
        data:
            Value to check.
        hetero:
            Whether a heterogeneous graph will do, too.

    Raises:
        GraphError:
            If it is a data set of graphs, a heterogeneous graph, or no graph at all.
    """
    if isinstance(data, Data) or (hetero and isinstance(data, HeteroData)):
        return
    advice = "make one with torch_geometric.data.Data"
    if isinstance(data, HeteroData):
        first = data.node_types[0] if data.node_types else "..."
        advice = (
            f"name the node type that is classified: "
            f"task=sgq.tasks.node_classification(node_type={first!r})"
        )
    elif isinstance(data, TorchDataset | DataLoader | list):
        advice = "take one of its graphs, or join them with tasks.joined_graphs(train, val, test)"
    raise GraphError(f"graph: expected torch_geometric.data.Data, got {kind_of(data)}; {advice}")


def check_finite_features(x: Tensor, name: str = "x") -> None:
    """Check that features are finite, and so small that a norm does not overflow.

    Args:
        x:
            Features, ``[N, F]``.
        name:
            Name of the column.

    Raises:
        GraphError:
            If they are not.
    """
    values = x.non_zeros if isinstance(x, SparseFeatures) else x
    if not values.numel():
        return
    low, high = (float(value) for value in values.aminmax())  # NaN if there is one
    check_column(
        math.isfinite(low) and math.isfinite(high), name, "finite numbers", "NaN or infinity"
    )
    # Norms and variances sum up squares, in float32 at least.
    dtype = torch.promote_types(x.dtype, torch.float32)
    limit = math.sqrt(torch.finfo(dtype).max / x.shape[1])
    largest = max(-low, high)
    check_column(
        largest <= limit,
        name,
        f"values up to {limit:.1g}, whose squares can be added up",
        f"{largest:.3g}",
        "scale the features",
    )


def _check_edges(edge_index: Tensor, num_nodes: int) -> None:
    shaped = edge_index.dim() == 2 and edge_index.shape[0] == 2
    integers = not (edge_index.is_floating_point() or edge_index.is_complex())
    check_column(
        shaped and edge_index.dtype == torch.long,
        "edge_index",
        "int64 [2, E]",
        edge_index,
        "data.edge_index = data.edge_index.long()" if shaped and integers else None,
    )
    if edge_index.numel():
        low, high = int(edge_index.min()), int(edge_index.max())
        expected = f"nodes from 0 to {num_nodes - 1}"
        check_column(0 <= low and high < num_nodes, "edge_index", expected, f"{low} to {high}")


def label_advice(y: Tensor, num_nodes: int) -> str | None:
    """Return how to make classes of labels of another shape or type, if that is plain."""
    if y.shape == (num_nodes, 1) and y.dtype == torch.long:
        return "data.y = data.y.flatten()"
    if y.dim() == 2 and y.shape[1] > 1:
        return "data.y = data.y.argmax(dim=1) if each row marks one class"
    if y.shape in ((num_nodes,), (num_nodes, 1)):
        return "data.y = data.y.flatten().long() if these are classes"
    return None


def mask_advice(name: str, mask: Tensor) -> str | None:
    """Return how to make a mask of what was given, if that is plain."""
    if mask.dim() == 2:
        return (
            f"it holds {mask.shape[1]} splits: choose one by split=0 (--split 0) or "
            f"choose_split(data, 0), or search on all of them by split='all'"
        )
    if mask.dim() == 1 and mask.dtype != torch.bool:
        return f"data.{name} = data.{name}.bool(), or index_to_mask() of PyG for numbers of nodes"
    return None


def column(data: Data, name: str) -> Tensor:
    """Return a column of a graph.

    Raises:
        GraphError:
            If it is missing, or no tensor.
    """
    found = data.get(name)
    if not isinstance(found, Tensor):
        hint = "; random_split() makes masks" if name.endswith("mask") else ""
        got = "" if found is None else f" a tensor, got {kind_of(found)};"
        raise GraphError(
            f"column {name}: expected{got or ' one,'} the graph has {list(data.keys())}{hint}"
        )
    return found


def kind_of(value: object) -> str:
    """Return the type of a value in words."""
    return "None" if value is None else f"a {type(value).__name__}"


def check_column(
    holds: bool, name: str, expected: str, got: Tensor | str, advice: str | None = None
) -> None:
    """Refuse a column that is not what was expected.

    Args:
        holds:
            Whether it is.
        name:
            Name of the column.
        expected:
            Words for what was expected.
        got:
            Column, or words for what is wrong with it.
        advice:
            Words for what to do.

    Raises:
        GraphError:
            If it does not hold.
    """
    if not holds:
        if isinstance(got, Tensor):
            got = f"{str(got.dtype).removeprefix('torch.')} {list(got.shape)}"
        then = f"; {advice}" if advice else ""
        raise GraphError(f"column {name}: expected {expected}, got {got}{then}")
