"""Which arguments of a layer's call are node features, told by their names, types and shapes."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from sgquant_optuna.exceptions import ModelError

ROOT = "model"
"""Layer name of a model that is itself a single convolution."""

_FIRST = ("x", "input")
"""Names of the features: in PyG's convolutions, and in torch's ``Linear``."""

_OF_NODES = ("x", "h", "z", "pos", "normal", "feat", "node")
"""Beginnings of names that say a matrix has a row for each node."""

_UNNAMED = "argument"
"""Beginning of the name of an argument beyond those of the signature."""

_NOT_OF_NODES = ("edge", "adj", "hyperedge", "size", "batch", "lambda")


def node_dim(layer: nn.Module) -> int:
    """Return the dimension of a layer's features that counts the nodes."""
    return int(layer.node_dim) if isinstance(layer, MessagePassing) else 0


def positional_names(layer: nn.Module) -> list[str]:
    """Return the names of the positional parameters of ``layer.forward``."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(layer.forward).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in kinds]


def position_of(layer: nn.Module, argument: str) -> int:
    """Return the position of an argument where it is not given by name.

    Args:
        layer:
            Layer that is called.
        argument:
            Name as :func:`named_arguments` gives it.

    Returns:
        Position from 0; one that no call has for an argument that can be given by name alone.
    """
    names, (argument, _) = positional_names(layer), _split(argument)
    if argument in names:
        return names.index(argument)
    number = argument.removeprefix(_UNNAMED)
    is_unnamed = argument.startswith(_UNNAMED) and number.isdecimal()
    return int(number) if is_unnamed else sys.maxsize


def named_arguments(
    layer: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a call by name; ``argument3`` where the signature has none."""
    names = positional_names(layer)
    names += [f"{_UNNAMED}{position}" for position in range(len(names), len(args))]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def feature_arguments(
    name: str,
    layer: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    num_nodes: int | None = None,
    num_edges: int | None = None,
) -> list[str]:
    """Return the names of the arguments that are node features, the main ones first.

    These are floating-point tensors ``[N, F]`` (or with further leading dimensions). ``x`` comes
    first; where there is none, the first tensor that has a row for each node.

    Args:
        name:
            Name of the layer, for error messages.
        layer:
            Layer that is called.
        args:
            Positional arguments of the call.
        kwargs:
            Keyword arguments of the call.
        num_nodes:
            Number of nodes N, if known.
        num_edges:
            Number of edges E, if known.

    Raises:
        ModelError:
            If they cannot be told from features of edges, or are of several node types.
    """
    given = named_arguments(layer, args, kwargs)
    for argument, value in given.items():
        if isinstance(value, dict):
            raise ModelError(
                f"{name}: expected one feature tensor, got {argument} as dict; heterogeneous "
                f"inputs are not supported, leave the layer out with layers="
            )
    found = {
        argument: value
        for argument, value in given.items()
        if not argument.startswith(_NOT_OF_NODES) and _is_matrix(value)
    }
    first = next((argument for argument in _FIRST if argument in found), None)
    if first is None and len(found) == 1 and not isinstance(layer, MessagePassing):
        return list(found)
    if num_nodes is not None:
        found = {
            argument: value
            for argument, value in found.items()
            if argument == first or _has_rows(value, num_nodes, node_dim(layer))
        }
    unclear = [argument for argument in found if not argument.startswith((*_FIRST, *_OF_NODES))]
    if len(found) > 1 and unclear and num_nodes == num_edges:
        raise ModelError(
            f"{name}: cannot tell whether {', '.join(unclear)} is a matrix of nodes or of edges, "
            f"because the graph has {num_nodes} of both; name the parameter x_... or edge_... , "
            f"or leave the layer out with layers="
        )
    names = list(found)
    return names if first is None else [first, *(one for one in names if one != first)]


def edge_features(given: Mapping[str, Any]) -> list[str]:
    """Return the names of the arguments that are features of edges, ``[E, D]``."""
    return [name for name, value in given.items() if name.startswith("edge") and _is_matrix(value)]


def _is_matrix(value: object) -> bool:
    if isinstance(value, tuple | list):
        return bool(value) and any(_is_matrix(one) for one in value)
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.is_floating_point()
        and value.dim() > 1
    )


def _has_rows(value: Any, num_nodes: int, dim: int) -> bool:
    x = next(one for one in value if one is not None) if isinstance(value, tuple | list) else value
    return num_nodes in (x.shape[0], x.shape[dim])


def change_argument(
    site: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    argument: str,
    position: int,
    change: Callable[[Tensor], Tensor],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Apply a function to one argument of a call.

    Args:
        site:
            Name of the site, for error messages.
        args:
            Positional arguments of the call.
        kwargs:
            Keyword arguments of the call.
        argument:
            Name of the argument, or of a part of it: ``x[0]`` of a pair, ``x_dict[paper]``.
        position:
            Position of the argument where it is not given by name.
        change:
            Function from features to features of one shape; called once if the same tensor is
            given as source and target.

    Returns:
        Positional and keyword arguments, with the argument changed where it is given.

    Raises:
        ModelError:
            If the argument is not one feature tensor.
    """
    argument, part = _split(argument)
    if argument in kwargs:
        value = kwargs[argument]
        return args, kwargs if value is None else {
            **kwargs,
            argument: _changed_part(site, value, part, change),
        }
    if position >= len(args) or args[position] is None:
        return args, kwargs
    changed = _changed_part(site, args[position], part, change)
    return (*args[:position], changed, *args[position + 1 :]), kwargs


def parts_of(layer: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the features of a layer in a heterogeneous graph by name: one tensor each.

    Only the main argument counts: features ``[N, F]``, a pair of those of sources and targets, or
    a dictionary by node type.

    Returns:
        Tensors by the name of the argument, ``x[0]`` and ``x[1]`` of a pair, ``x_dict[paper]`` of
        a dictionary.
    """
    given = named_arguments(layer, args, kwargs)
    found = [
        argument
        for argument, value in given.items()
        if not argument.startswith(_NOT_OF_NODES) and (_is_matrix(value) or _is_by_type(value))
    ]
    firsts = [one for one in found if one.removesuffix("_dict") in _FIRST]
    if not found:
        return {}
    argument = (firsts or found)[0]
    value = given[argument]
    if isinstance(value, Tensor):
        return {argument: value}
    if not isinstance(value, dict):
        if len(value) == 2 and (value[1] is None or value[0] is value[1]):
            return {argument: value[0]}
        value = dict(enumerate(value))
    return {f"{argument}[{key}]": x for key, x in value.items() if _is_matrix(x)}


def _is_by_type(value: object) -> bool:
    return isinstance(value, dict) and any(
        isinstance(key, str) and _is_matrix(one) for key, one in value.items()
    )


def part_of(argument: str) -> str | None:
    """Return the part that a name tells of an argument: ``paper`` of ``x_dict[paper]``."""
    return _split(argument)[1]


def _split(argument: str) -> tuple[str, str | None]:
    name, bracket, part = argument.partition("[")
    return name, part.removesuffix("]") if bracket else None


def _changed_part(
    site: str, value: Any, part: str | None, change: Callable[[Tensor], Tensor]
) -> object:
    if part is None:
        return _changed(site, value, change)
    if isinstance(value, dict) and part in value:
        return {**value, part: change(value[part])}
    if isinstance(value, tuple | list) and part in ("0", "1") and len(value) == 2:
        at = int(part)
        return (*value[:at], change(value[at]), *value[at + 1 :])
    raise ModelError(
        f"{site}: expected features of each node type as in the calibration, got "
        f"{type(value).__name__}; call the layer in the same way in each pass"
    )


def features_of(site: str, value: object) -> Tensor:
    """Return the tensor of features: the value itself, or the one in a pair that holds it twice.

    Raises:
        ModelError:
            If the value is not one feature tensor.
    """
    seen: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    _changed(site, value, look)
    return seen[0]


def _changed(site: str, x: object, change: Callable[[Tensor], Tensor]) -> object:
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, tuple | list) and len(x) == 2:
        source, target = x
        if isinstance(source, Tensor) and (target is None or target is source):
            changed = change(source)
            return (changed, None if target is None else changed)
    raise ModelError(
        f"{site}: expected one feature tensor (or twice the same), got {type(x).__name__}; "
        f"bipartite inputs are not supported"
    )
