"""Quantized embeddings: the quantizer stands at the input of a layer, which has to be stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch_geometric.nn import Linear, MessagePassing

from sgquant_optuna.attachment.layer_arguments import (
    change_argument,
    edge_features,
    feature_arguments,
    features_of,
    named_arguments,
    node_dim,
    position_of,
)
from sgquant_optuna.attachment.site_quantizer import SiteQuantizer
from sgquant_optuna.attachment.typed_inputs import ARGUMENTS, FEATURES, MAIN, observe_types
from sgquant_optuna.exceptions import ModelError
from sgquant_optuna.quantization.quantizers import FeatureQuantizer

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Modules that read the weights of their linear layers without calling them."""


def default_layers(model: nn.Module) -> list[str]:
    """Return the paths of the outermost convolutions and linear layers, in model order.

    These are the layers whose input features :func:`.attach` quantizes by default. Linear layers
    inside fused attention (``nn.MultiheadAttention``, ``nn.TransformerEncoderLayer``) are left
    out, because torch reads their weights without calling them.

    Args:
        model:
            Module with PyG convolutions.

    Returns:
        Paths for ``attach(model, layers=...)``; ``""`` for a model that is a convolution itself.

    Raises:
        ModelError:
            If the model has no message passing.

    Example:
        >>> from sgquant_optuna import GCN, attach, default_layers
        >>> model = GCN(8, 3)
        >>> default_layers(model)
        ['conv1', 'conv2']
        >>> attach(model, layers=default_layers(model)[1:])  # the input stays float32
        GCN(
        ...
    """
    convs = [name for name, module in model.named_modules() if isinstance(module, MessagePassing)]
    if not convs:
        raise ModelError(
            f"expected a model with message passing (torch_geometric.nn.MessagePassing), got "
            f"{type(model).__name__} without any; give it PyG convolutions"
        )
    closed = [*convs, *fused_attention(model)]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, MessagePassing | nn.Linear | Linear)
        and not any(name.startswith(outer + ".") or outer == "" != name for outer in closed)
    ]


def fused_attention(model: nn.Module) -> dict[str, str]:
    """Return the path and class name of each outermost module with fused attention."""
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, _FUSED) and not any(name.startswith(f"{one}.") for one in found):
            found[name] = type(module).__name__
    return found


def quantize_input(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Quantize the input features of a layer; a forward pre-hook.

    The hook is a plain function that looks the quantizers up in the layer, so that copies and
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
    main = layer.get_submodule(FEATURES)
    assert isinstance(main, SiteQuantizer)
    main.graph.used.add(main.name)
    if main.graph.observations is not None:
        _observe(main, layer, args, kwargs)
        return args, kwargs
    dim = node_dim(layer)
    for argument, (position, name) in layer.__dict__.get(ARGUMENTS, {}).items():
        quantizer = layer.get_submodule(name)

        def change(x: Tensor, quantizer: nn.Module = quantizer) -> Tensor:
            out: Tensor = quantizer(x, dim)
            return out

        args, kwargs = change_argument(main.name, args, kwargs, argument, position, change)
    return args, kwargs


def _observe(
    main: SiteQuantizer, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Record the features that a layer is called with, and find out which arguments they are."""
    graph, path = main.graph, main.name.rpartition("/")[0]
    if graph.types is not None:
        observe_types(main, layer, args, kwargs)
        return
    arguments = feature_arguments(
        path,
        layer,
        args,
        kwargs,
        num_nodes=graph.num_nodes,
        num_edges=graph.num_edges,
    )
    known: dict[str, tuple[int, str]] = layer.__dict__.setdefault(ARGUMENTS, {})
    given = named_arguments(layer, args, kwargs)
    for argument in edge_features(given):
        graph.note(f"{path}: features of edges ({argument}) are not quantized and not counted")
    for argument in arguments:
        x = features_of(f"{path}/{argument}", given[argument])
        if argument not in known:
            position = position_of(layer, argument)
            known[argument] = (position, _quantizer_of(main, layer, argument, x, bool(known)))
        quantizer = layer.get_submodule(known[argument][1])
        assert isinstance(quantizer, SiteQuantizer)
        # A shared tensor is stored, and so recorded, where it was seen first.
        if known[argument][1] == FEATURES or quantizer.name == f"{path}.{argument}/embedding":
            quantizer(x, node_dim(layer))


def _quantizer_of(
    main: SiteQuantizer, layer: nn.Module, argument: str, x: Tensor, is_second: bool
) -> str:
    """Return the name of the submodule for an argument that is seen for the first time.

    Second features that a quantizer has seen already, in this or another layer, are stored once,
    so that they share its site: ``x_0`` of all layers of GCNII is the input of the first.
    """
    if not is_second:
        return FEATURES
    graph, name = main.graph, f"{FEATURES}_of_{argument}"
    assert graph.observations is not None
    seen = [call for calls in graph.observations.values() for call in calls]
    holder = next((call.quantizer for call in seen if call.x is x), None)
    if holder is None:
        path = main.name.rpartition("/")[0]
        plain = FeatureQuantizer(f"{path}.{argument}/embedding", main.quantizer.config)
        holder = SiteQuantizer(plain, graph)
    layer.add_module(name, holder)
    return name


def layer_quantizers(model: nn.Module) -> Iterator[tuple[str, str, SiteQuantizer]]:
    """Yield layer path, name of the argument and quantizer of all quantized features.

    The quantizer of second features may be that of another layer, where both take one tensor.
    """
    for path, layer in model.named_modules():
        for argument, (_, name) in layer.__dict__.get(ARGUMENTS, {}).items():
            quantizer = layer.get_submodule(name)
            assert isinstance(quantizer, SiteQuantizer)
            yield path, argument, quantizer


def forget_arguments(layer: nn.Module) -> None:
    """Remove what calibration found out of the arguments of a layer, second features included."""
    for _, name in layer.__dict__.pop(ARGUMENTS, {}).values():
        if name != FEATURES:
            layer._modules.pop(name, None)
    main = layer.__dict__.pop(MAIN, None)
    if main is not None:
        layer._modules[FEATURES] = main
