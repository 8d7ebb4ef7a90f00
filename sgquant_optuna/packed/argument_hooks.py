"""Hooks that give a layer other features than its caller does: packed ones, or none."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from sgquant_optuna.attachment.layer_arguments import change_argument, position_of
from sgquant_optuna.exceptions import PackingError


def replace_argument(
    layer: nn.Module, path: str, argument: str, change: Callable[[Tensor], Tensor], name: str
) -> None:
    """Let a layer get the result of a function in the place of an argument.

    Args:
        layer:
            Module whose calls are changed.
        path:
            Path of the layer in its model.
        argument:
            Name of the argument.
        change:
            Function of what the caller gives.
        name:
            Name of the site that errors tell.

    Raises:
        PackingError:
            If the layer takes no such argument.
    """
    _check_argument(path, layer, argument)
    position = position_of(layer, argument)
    layer.register_forward_pre_hook(
        partial(_change_input, name, change, argument, position), with_kwargs=True
    )


def _change_input(
    name: str,
    change: Callable[[Tensor], Tensor],
    argument: str,
    position: int,
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return change_argument(name, args, kwargs, argument, position, change)


def _check_argument(path: str, layer: nn.Module, argument: str) -> None:
    """Refuse a name that no call of a layer gives, so that its site would not be reached."""
    parameters = inspect.signature(layer.forward).parameters
    takes_any = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
    if argument.partition("[")[0] not in parameters and not takes_any:
        raise PackingError(
            f"arguments of {path}: expected one of {', '.join(parameters)}, got {argument!r}"
        )
