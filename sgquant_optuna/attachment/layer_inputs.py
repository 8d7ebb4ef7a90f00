"""Quantized embeddings: the quantizer stands at the input of a layer, which has to be stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch_geometric.nn import Linear, MessagePassing

from sgquant_optuna.attachment.site_quantizer import SiteQuantizer
from sgquant_optuna.exceptions import ModelError

_INPUT_NAMES = ("x", "input")
"""Names of the feature argument: in PyG's convolutions, and in torch's ``Linear``."""


def default_layers(model: nn.Module) -> list[str]:
    """Return the paths of the outermost convolutions and linear layers, in model order.

    Raises:
        ModelError:
            If the model has no message passing.
    """
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
    """Quantize the input features of a layer; a forward pre-hook.

    The hook is a plain function that looks the quantizer up in the layer, so that copies and
    pickles of a model use their own quantizers.

    Args:
        layer:
            Layer with a feature quantizer.
        args:
            Positional arguments of the call.
        kwargs:
            Keyword arguments of the call.

    Returns:
        Both, with the features quantized.

    Raises:
        ModelError:
            If the layer is not called with one feature tensor.
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
    """Apply a function to the features among the arguments of a layer.

    Args:
        name:
            Name of the site, for error messages.
        args:
            Positional arguments of the call.
        kwargs:
            Keyword arguments of the call.
        change:
            Function from features to features, both ``[N, F]``; called once if the same tensor
            is given as source and target.

    Returns:
        Positional and keyword arguments, with the features changed.

    Raises:
        ModelError:
            If the layer is not called with one feature tensor.
    """
    for input_name in _INPUT_NAMES:
        if input_name in kwargs:
            return args, {**kwargs, input_name: _changed(name, kwargs[input_name], change)}
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
