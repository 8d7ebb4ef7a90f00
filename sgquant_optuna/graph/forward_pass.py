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
from torch_geometric.data import Data

from sgquant_optuna.exceptions import ModelError

Forward = Callable[[nn.Module, Data], Tensor]
"""Function that calls a model with a graph and returns its outputs, such as scores ``[N, C]``."""

_logger = logging.getLogger(__name__)
_told: set[tuple[str, str]] = set()

_ANSWERS = ("y", "label", "labels", "target", "targets", "edge_label")


def forward(model: nn.Module, data: Data) -> Tensor:
    """Call a model with features and edges, and with the other columns that it cannot do without.

    ``forward(x, edge_index)`` is called with these two columns; ``adj_t`` takes the place of
    ``edge_index`` in a graph without one. A parameter that has a default keeps it: name the
    columns with :func:`columns` to pass more. A ``forward`` whose only required parameter is
    ``data`` is called with the graph itself.

    Args:
        model:
            Module whose ``forward`` has named parameters.
        data:
            Graph with a column for each required parameter.

    Returns:
        Result of the model: class scores, ``[N, C]``.

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
        out = model(data.x, data[_edges_of(data)])  # as torch_geometric.nn.Sequential
    else:
        out = model(**_given(model, data, named, required))
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


def _given(
    model: nn.Module, data: Data, named: list[Parameter], required: list[str]
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
    given = {column: data[column] for column in required if column in data}
    if "edge_index" in required and edges == "adj_t":
        given["edge_index"] = data.adj_t
    missing = [column for column in required if column not in given]
    if missing:
        raise ModelError(
            f"{name}.forward needs {', '.join(missing)}, which the graph does not have (it has "
            f"{', '.join(sorted(data.keys()))}); name a column for it with "
            f"forward=columns({missing[0]}=...), or pass your own forward=lambda model, data: ..."
        )
    for parameter in named:
        column = parameter.name
        if column in given or column not in data:
            continue
        if column in ("x", edges):
            given[column] = data[column]
        elif not _is_answer(column) and column not in ("edge_index", "adj_t"):
            _tell_once(name, column, [*given])
    return given


@dataclass(frozen=True)
class Columns:
    """A call of a model with the columns that the user has named; made by :func:`columns`.

    Args:
        columns:
            Pairs of a parameter of ``forward`` and the column that it gets.
    """

    columns: tuple[tuple[str, str], ...]

    def __call__(self, model: nn.Module, data: Data) -> Tensor:
        """Call a model with these columns of a graph."""
        parameters = _parameters(model)
        kinds = {p.kind for p in parameters}
        names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        missing = [column for _, column in self.columns if column not in data]
        if missing:
            raise ModelError(
                f"columns: expected {', '.join(missing)} in the graph, it has "
                f"{', '.join(sorted(data.keys()))}"
            )
        unknown = [name for name, _ in self.columns if name not in names]
        out: Tensor
        if unknown and not names and Parameter.VAR_POSITIONAL in kinds:
            out = model(*(data[column] for _, column in self.columns))
        elif unknown and Parameter.VAR_KEYWORD not in kinds:
            raise ModelError(
                f"columns: {type(model).__name__}.forward has no parameter {', '.join(unknown)}, "
                f"it has {', '.join(sorted(names))}; columns(parameter='column') gives a column "
                f"to a parameter of another name"
            )
        else:
            out = model(**{name: data[column] for name, column in self.columns})
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


def _edges_of(data: Data) -> str:
    return "adj_t" if "edge_index" not in data and "adj_t" in data else "edge_index"


def _is_answer(column: str) -> bool:
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
