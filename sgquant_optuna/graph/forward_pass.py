"""The call of a model with a graph: which columns a model gets, and what it has to return.

A model gets features and edges. It never gets labels or masks without the user's word: a model
that reads the answers looks perfect, and a column that happens to have the name of an optional
parameter would change the model.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from inspect import Parameter
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from torch_geometric.data import HeteroData

from sgquant_optuna.exceptions import ModelError
from sgquant_optuna.graph.node_types import (
    Graph,
    column_names,
    keys_of,
    named_columns,
    types_without_features,
)

Forward = Callable[[nn.Module, Any], Tensor]
"""Function that calls a model with a graph and returns its outputs, such as scores ``[N, C]``."""

_logger = logging.getLogger(__name__)
_told: set[tuple[str, str]] = set()

_ANSWERS = ("y", "label", "labels", "target", "targets", "edge_label")


def forward(model: nn.Module, data: Graph) -> Tensor:
    """Call a model with features and edges, and with the other columns that it cannot do without.

    ``forward(x, edge_index)`` is called with these two columns; ``adj_t`` takes the place of
    ``edge_index`` in a graph without one. A parameter that has a default keeps it: name the
    columns with :func:`columns` to pass more. A ``forward`` whose only required parameter is
    ``data`` is called with the graph itself. Of a heterogeneous graph, ``x`` or ``x_dict`` is the
    dictionary of the features by node type, ``edge_index`` or ``edge_index_dict`` that of the
    edges by relation, and so for every column.

    Args:
        model:
            Module whose ``forward`` has named parameters.
        data:
            Graph with a column for each required parameter.

    Returns:
        Result of the model: class scores, ``[N, C]``, or such of each node type.

    Raises:
        ModelError:
            If the graph lacks a column that ``forward`` needs, or it needs labels or a mask.
    """
    parameters = _parameters(model)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in named if p.default is p.empty]
    out: Tensor
    if required == ["data"]:
        out = model(data)
    elif not named and any(p.kind is p.VAR_POSITIONAL for p in parameters):
        # As torch_geometric.nn.Sequential.
        out = model(_column(data, "x"), _column(data, _edges_of(data)))
    else:
        given = _given(model, data, named, required)
        out = _called(model, given, data) if isinstance(data, HeteroData) else model(**given)
    return out


def _parameters(model: nn.Module) -> list[Parameter]:
    """Return the parameters of ``forward``; those of a method are read once, as they stay."""
    method = model.forward
    if isinstance(method, MethodType) and isinstance(method.__func__, FunctionType):
        return _parameters_of_method(method.__func__)
    return list(inspect.signature(method).parameters.values())


@lru_cache(maxsize=256)
def _parameters_of_method(function: FunctionType) -> list[Parameter]:
    bound = MethodType(function, function)  # without the first parameter, whatever its kind
    return list(inspect.signature(bound).parameters.values())


def _called(model: nn.Module, given: dict[str, Any], data: HeteroData) -> Any:
    """Call a model, and name the features or relations that it may not do without."""
    try:
        return model(**given)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        lacking = types_without_features(data)
        unknown = _unknown_relations(model, data)
        if not lacking and not unknown:
            raise
        said = f"and failed ({type(error).__name__}: {error})"
        name = f"{type(model).__name__}.forward"
        if unknown:
            raise ModelError(
                f"{name}: got no edges of relation {', '.join(unknown)}, which the graph does not "
                f"have, {said}; make the model with data.metadata() of this graph"
            ) from error
        raise ModelError(
            f"{name}: got no features of node type {', '.join(lacking)}, which have no x in the "
            f"graph, {said}; give them x, or an embedding in the model"
        ) from error


def _unknown_relations(model: nn.Module, data: HeteroData) -> list[str]:
    """Return relations that modules of ``to_hetero`` are named after and the graph lacks."""
    known = {key for relation in data.edge_types for key in keys_of(relation)}
    names = dict.fromkeys(path.rpartition(".")[2] for path, _ in model.named_modules())
    return [name for name in names if name.count("__") == 2 and name not in known]


def _given(
    model: nn.Module, data: Graph, named: list[Parameter], required: list[str]
) -> dict[str, Any]:
    name = type(model).__name__
    answers = [column for column in required if _is_answer(column)]
    if answers:
        raise ModelError(
            f"{name}.forward: expected features and edges as parameters without a default, got "
            f"{', '.join(answers)}; if it may see that, name every column: "
            f"forward=columns({', '.join(map(repr, required))})"
        )
    edges = _edges_of(data)
    found = {column: _column(data, column) for column in required}
    given = {column: value for column, value in found.items() if value is not None}
    for column in [one for one in required if _is(one, "edge_index")]:
        if edges == "adj_t":
            given[column] = _column(data, edges)
    missing = [column for column in required if column not in given]
    if missing:
        raise ModelError(
            f"{name}.forward needs {', '.join(missing)}, which the graph does not have (it has "
            f"{', '.join(_names(data))}); name a column for it with "
            f"forward=columns({missing[0]}=...), or pass your own forward=lambda model, data: ..."
        )
    for parameter in named:
        column = parameter.name
        value = None if column in given else _column(data, column)
        if value is None:
            continue
        if _is(column, "x") or _is(column, edges):
            given[column] = value
        elif not _is_answer(column) and not _is(column, "edge_index") and not _is(column, "adj_t"):
            _tell_once(name, column, [*given])
    return given


@dataclass(frozen=True)
class OfType:
    """A call of a model that returns the outputs of one node type alone; it can be pickled.

    Args:
        forward:
            Function that calls the model with the graph.
        node_type:
            Node type whose outputs are taken of a dictionary.
    """

    forward: Forward
    node_type: str

    def __call__(self, model: nn.Module, data: Graph) -> Tensor:
        """Call a model, and pick the outputs of the node type."""
        outputs: Any = self.forward(model, data)
        if isinstance(outputs, dict) and self.node_type in outputs:
            outputs = outputs[self.node_type]
        found: Tensor = outputs
        return found


@dataclass(frozen=True)
class Columns:
    """A call of a model with the columns that the user has named; made by :func:`columns`.

    Args:
        columns:
            Pairs of a parameter of ``forward`` and the column that it gets.
    """

    columns: tuple[tuple[str, str], ...]

    def __call__(self, model: nn.Module, data: Graph) -> Tensor:
        """Call a model with these columns of a graph."""
        parameters = _parameters(model)
        kinds = {p.kind for p in parameters}
        names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        values = {name: _column(data, column) for name, column in self.columns}
        missing = [column for name, column in self.columns if values[name] is None]
        if missing:
            raise ModelError(
                f"columns: expected {', '.join(missing)} in the graph, it has "
                f"{', '.join(_names(data))}"
            )
        unknown = [name for name, _ in self.columns if name not in names]
        out: Tensor
        if unknown and not names and Parameter.VAR_POSITIONAL in kinds:
            out = model(*values.values())
        elif unknown and Parameter.VAR_KEYWORD not in kinds:
            raise ModelError(
                f"columns: {type(model).__name__}.forward has no parameter {', '.join(unknown)}, "
                f"it has {', '.join(sorted(names))}; columns(parameter='column') gives a column "
                f"to a parameter of another name"
            )
        else:
            out = model(**values)
        return out


def columns(*names: str, **renamed: str) -> Columns:
    """Name the columns of a graph that a model is called with.

    ``forward=columns("x", "edge_index", "edge_weight")`` calls
    ``model(x=data.x, edge_index=data.edge_index, edge_weight=data.edge_weight)``. The result can
    be pickled, so that worker processes may use it.

    Args:
        names:
            Columns that are given to the parameters of the same name.
        renamed:
            Columns by the name of the parameter that they are given to.

    Raises:
        ValueError:
            If no column is named, a name is not a string, or a parameter is named twice.
    """
    pairs = (*((name, name) for name in names), *renamed.items())
    parameters = [parameter for parameter, _ in pairs]
    if not all(isinstance(column, str) for _, column in pairs):
        raise ValueError(f"columns: expected names of columns, got {names} {renamed}")
    if not pairs or len(set(parameters)) < len(parameters):
        raise ValueError(
            f"columns: expected at least one column, and each parameter once, got {parameters}"
        )
    return Columns(pairs)


def _column(data: Graph, name: str) -> Any:
    """Return a column, by node type or relation if there are several; ``None`` without one."""
    if isinstance(data, HeteroData):
        return named_columns(data, name)
    return data[name] if name in data else None


def _names(data: Graph) -> list[str]:
    return column_names(data) if isinstance(data, HeteroData) else sorted(data.keys())


def _edges_of(data: Graph) -> str:
    has = [_column(data, name) is not None for name in ("edge_index", "adj_t")]
    return "adj_t" if has == [False, True] else "edge_index"


def _is(parameter: str, column: str) -> bool:
    return parameter in (column, f"{column}_dict")


def _is_answer(column: str) -> bool:
    column = column.removesuffix("_dict")
    return column in _ANSWERS or column == "mask" or column.endswith("_mask")


def _tell_once(model: str, column: str, given: list[str]) -> None:
    if (model, column) not in _told:
        _told.add((model, column))
        named = ", ".join(f'"{name}"' for name in [*given, column])
        _logger.warning(
            "%s.forward has an optional %s and the graph has that column, which is not passed; "
            "to pass it, say forward=columns(%s)",
            *(model, column, named),
        )
