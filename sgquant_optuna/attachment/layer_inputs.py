"""Embedding quantizers: at the input of each layer, where the features have to be stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch_geometric.nn import Linear, MessagePassing

from sgquant_optuna.attachment.site_quantizer import SiteQuantizer
from sgquant_optuna.exceptions import ModelError

_INPUT = "x"  # PyG's convolutions call it x; torch's Linear calls it input
_ALIASES = (_INPUT, "input")


def default_layers(model: nn.Module) -> list[str]:
    """Return the paths of the outermost convolutions and linear layers, in model order."""
    convs = [name for name, module in model.named_modules() if isinstance(module, MessagePassing)]
    if not convs:
        raise ModelError(
            f"expected a model with message passing (torch_geometric.nn.MessagePassing), got "
            f"{type(model).__name__} without any; give it PyG convolutions"
        )
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, MessagePassing | nn.Linear | Linear)
        and not any(name.startswith(conv + ".") or conv == "" != name for conv in convs)
    ]


def quantize_input(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook: quantize the features that the layer is called with.

    A plain function that reads the layer, so that copies and pickles of a model keep their own
    quantizers.
    """
    quantizer = layer.get_submodule("feature_quantizer")
    assert isinstance(quantizer, SiteQuantizer)
    return map_input(quantizer.name, args, kwargs, quantizer)


def map_input(
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    change: Callable[[Tensor], Tensor],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Change the features among the arguments of a layer, and nothing else.

    Args:
        name:
            Where the layer stands, for error messages.
        args:
            Arguments by position.
        kwargs:
            Arguments by name.
        change:
            Takes and returns the features, ``[N, F]``; called once if they come twice.

    Raises:
        ModelError:
            If the layer gets no single feature tensor.
    """
    for alias in _ALIASES:
        if alias in kwargs:
            return args, {**kwargs, alias: _changed(name, kwargs[alias], change)}
    return (_changed(name, args[0], change), *args[1:]), kwargs


def _changed(name: str, x: object, change: Callable[[Tensor], Tensor]) -> object:
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, tuple | list):
        source, target = x
        if target is None or target is source:
            changed = change(source)
            return (changed, None if target is None else changed)
    raise ModelError(
        f"{name}: expected one feature tensor (or twice the same), got {type(x).__name__}; "
        f"bipartite inputs are not supported"
    )
