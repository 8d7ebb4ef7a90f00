"""Embedding quantizers: at the input of each layer, where the features have to be stored."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch_geometric.nn import Linear, MessagePassing

from sgquant_optuna.attachment.context import SiteQuantizer
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
    for alias in _ALIASES:
        if alias in kwargs:
            return args, {**kwargs, alias: _quantize(layer, kwargs[alias])}
    return (_quantize(layer, args[0]), *args[1:]), kwargs


def _quantize(layer: nn.Module, x: object) -> object:
    quantizer = layer.get_submodule("feature_quantizer")
    assert isinstance(quantizer, SiteQuantizer)
    if isinstance(x, Tensor):
        return quantizer(x)
    if isinstance(x, tuple | list):
        source, target = x
        if target is None or target is source:
            quantized = quantizer(source)
            return (quantized, None if target is None else quantized)
    raise ModelError(
        f"{quantizer.name}: expected one feature tensor (or twice the same), got "
        f"{type(x).__name__}; bipartite inputs are not supported"
    )
