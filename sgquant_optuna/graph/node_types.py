"""Heterogeneous graphs: their node types and relations checked, and their columns by type.

Code that works on both kinds of graphs walks over :func:`node_parts` and :func:`edge_parts`. A
graph of one node type has one part of each, under the name ``""``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn.module_dict import ModuleDict

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.columns import check_column, check_finite_features, kind_of

Graph: TypeAlias = Data | HeteroData
ONLY_TYPE = ""
"""Name of the one node type of a graph that is not heterogeneous."""


def node_parts(data: Graph) -> dict[str, Any]:
    """Return the columns of the nodes by node type, in the order of the graph."""
    if not isinstance(data, HeteroData):
        return {ONLY_TYPE: data}
    return {str(name): data[name] for name in data.node_types}


def edge_parts(data: Graph) -> dict[str, Any]:
    """Return the columns of the edges by relation, ``author writes paper``, in order."""
    if not isinstance(data, HeteroData):
        return {ONLY_TYPE: data}
    return {" ".join(relation): data[relation] for relation in data.edge_types}


def device_of(data: Graph) -> torch.device:
    """Return the device of the features; of the edges where there are none."""
    parts = (*node_parts(data).values(), *edge_parts(data).values())
    columns = [part.get(name) for name in ("x", "edge_index") for part in parts]
    return next((one.device for one in columns if isinstance(one, Tensor)), torch.device("cpu"))


def num_columns(data: Graph) -> int | dict[str, int]:
    """Return the number of features, by node type for a heterogeneous graph."""
    if isinstance(data, HeteroData):
        return {name: int(part.num_features) for name, part in node_parts(data).items()}
    return int(data.num_features)


def types_without_features(data: HeteroData) -> list[str]:
    """Return the node types that have no ``x``."""
    return [name for name, part in node_parts(data).items() if part.get("x") is None]


def check_node_types(data: object, node_type: str) -> None:
    """Check types, features and edges of a heterogeneous graph.

    Args:
        data:
            Graph with ``x`` (``[N, F]`` float), or the number of nodes alone (``num_nodes``), of
            each node type, and ``edge_index`` (``[2, E]`` int64) of each relation.
        node_type:
            Node type of a task, which must be one of the graph's.

    Raises:
        GraphError:
            If it is no heterogeneous graph, the node type is not there, a node type has neither
            features nor a number of nodes, a relation names a node type that is not there, a
            column has another type or shape, a feature is not finite or too large, or an edge
            ends outside the nodes of its type.
    """
    if not isinstance(data, HeteroData):
        raise GraphError(
            f"graph: expected torch_geometric.data.HeteroData for a task with "
            f"node_type={node_type!r}, got {kind_of(data)}; leave node_type out for a graph of "
            f"one node type"
        )
    if node_type not in data.node_types:
        raise GraphError(
            f"node_type: expected one of {', '.join(map(repr, data.node_types))}, got "
            f"{node_type!r}"
        )
    sizes = {name: _num_nodes(name, part) for name, part in node_parts(data).items()}
    for relation in data.edge_types:
        _check_relation(relation, data[relation], sizes)
    if not data.edge_types:
        raise GraphError("graph: expected at least one relation with edges, got none")


def check_types_are(data: object, counts: Mapping[str, int]) -> None:
    """Check that a graph has these node types, with so many nodes each.

    Raises:
        GraphError:
            If it has others.
    """
    known = {ONLY_TYPE: None}
    if isinstance(data, HeteroData):
        known = {name: part.num_nodes for name, part in node_parts(data).items()}
    if known != dict(counts):
        expected = ", ".join(f"{count} of {name}" for name, count in counts.items())
        got = ", ".join(f"{count} of {name}" for name, count in known.items())
        raise GraphError(
            f"graph: expected one of the node types that the model was packed for ({expected}), "
            f"got {got if isinstance(data, HeteroData) else kind_of(data)}"
        )


def _num_nodes(name: str, part: Any) -> int:
    """Return the number of nodes of a type, and check its features."""
    x = part.get("x")
    if x is None:
        count = part.get("num_nodes")
        if not isinstance(count, int):
            raise GraphError(
                f"node type {name}: expected features x, or num_nodes for a model that has an "
                f"embedding of its own, got neither; set data[{name!r}].x"
            )
        return count
    is_matrix = isinstance(x, Tensor) and x.dim() == 2
    advice = f"data[{name!r}].x = data[{name!r}].x.float()" if is_matrix else None
    check_column(
        is_matrix and x.is_floating_point(),
        f"x of {name}",
        "float features [N, F]",
        x if isinstance(x, Tensor) else kind_of(x),
        advice,
    )
    check_finite_features(x, f"x of {name}")
    return int(x.shape[0])


def _check_relation(relation: tuple[str, str, str], part: Any, sizes: Mapping[str, int]) -> None:
    text = " ".join(relation)
    for end in (relation[0], relation[2]):
        if end not in sizes:
            raise GraphError(
                f"relation {text}: expected node types of the graph ({', '.join(sizes)}), got "
                f"{end!r}; set data[{end!r}].x"
            )
    edges = part.get("edge_index")
    expected = tuple(sizes[end] for end in (relation[0], relation[2]))
    if edges is None and part.get("adj_t") is not None:
        found = (part.adj_t.size(1), part.adj_t.size(0))
        check_column(found == expected, f"adj_t of {text}", f"{expected[::-1]}", f"{found[::-1]}")
        return
    fits = isinstance(edges, Tensor) and edges.dim() == 2 and edges.shape[0] == 2
    check_column(
        fits and edges.dtype == torch.long,
        f"edge_index of {text}",
        "int64 [2, E]",
        edges if isinstance(edges, Tensor) else kind_of(edges),
    )
    for end, row, count in zip((relation[0], relation[2]), edges, expected, strict=True):
        if row.numel():
            low, high = int(row.min()), int(row.max())
            check_column(
                0 <= low and high < count,
                f"edge_index of {text}",
                f"nodes of {end} from 0 to {count - 1}",
                f"{low} to {high}",
            )


def named_columns(data: HeteroData, name: str) -> dict[Any, Any] | None:
    """Return a column of all types that have it: ``x`` or ``x_dict``, ``edge_index_dict``.

    Args:
        data:
            Heterogeneous graph.
        name:
            Name of the column, with or without ``_dict``.

    Returns:
        Values by node type, or by relation; ``None`` if no type has such a column.
    """
    key = name.removesuffix("_dict")
    found = {part._key: part[key] for part in _stores(data) if key in part}
    return found or None


def column_names(data: HeteroData) -> list[str]:
    """Return the names of all columns, as the parameters of a model are called."""
    return sorted({f"{name}_dict" for part in _stores(data) for name in part})


def keys_of(name: str | tuple[str, str, str]) -> list[str]:
    """Return how submodules for a node type or relation are called.

    ``to_hetero`` joins a relation by ``__`` and replaces some characters; ``HeteroConv`` takes the
    key that PyG's ``ModuleDict`` makes of it.
    """
    joined = "__".join(name) if isinstance(name, tuple) else name
    plain = joined.replace(" ", "_").replace("-", "_").replace(":", "_")
    return [plain, joined, ModuleDict.to_internal_key(name)]


def _stores(data: HeteroData) -> Iterator[Any]:
    yield from data.node_stores
    yield from data.edge_stores
