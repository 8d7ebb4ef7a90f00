"""Attaching quantizers to a PyG model, choosing their bit widths, and detaching them again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch_geometric.data import Data

from sgquant_optuna.attachment.attention import quantized_class, restore_class, switch_class
from sgquant_optuna.attachment.dropout import DropoutRecorder
from sgquant_optuna.attachment.layer_inputs import default_layers, quantize_input
from sgquant_optuna.attachment.site_quantizer import GraphContext, SiteQuantizer
from sgquant_optuna.exceptions import (
    CalibrationError,
    GraphError,
    ModelError,
    QuantizerBypassedError,
    UnsupportedConvError,
)
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.quantizers import FeatureQuantizer
from sgquant_optuna.quantization.sites import FULL_PRECISION, BitWidths, Component, Site

_SUBMODULE: dict[Component, str] = {
    "embedding": "feature_quantizer",
    "attention": "attention_quantizer",
}
_CONTEXT = "graph_context"
_ROOT = "model"  # layer name of a model that is itself a single convolution


def attach(
    model: nn.Module,
    *,
    config: QuantizerConfig | None = None,
    num_buckets: int = 1,
    layers: Sequence[str] | None = None,
    attention: Sequence[str] | None = None,
) -> nn.Module:
    """Put quantizers onto a model, in place.

    They are the identity until :func:`.calibrate` has measured ranges and :func:`set_bit_widths`
    has chosen widths. With 32 bits everywhere, the result is bit-identical to the plain model's,
    in training too.

    Args:
        model:
            Module with PyG convolutions.
        config:
            Settings of every quantizer; by default those with the best measured accuracy.
        num_buckets:
            Number of degree buckets B; above 1, the graph needs ``data.degree_bucket``.
        layers:
            Paths of the layers whose input features are quantized. By default the outermost
            convolutions and linear layers.
        attention:
            Paths of the convolutions whose attention is quantized. By default all that have a
            registered class.

    Returns:
        The model itself.

    Raises:
        ModelError:
            If the model has no message passing, lacks a named layer, or has quantizers already.
        UnsupportedConvError:
            If a convolution in ``attention`` has no registered class.

    Reference:
        SGQuant (Feng et al., 2020, arXiv:2007.05100), which quantizes both the embedding and the
        attention matrix of each layer.
    """
    if _CONTEXT in model.__dict__:
        raise ModelError("expected a plain model, got one with quantizers; detach() it first")
    config = config or QuantizerConfig()
    attention_config = replace(config, axis="tensor")  # attention always has one range
    found = default_layers(model)
    layers = found if layers is None else [_resolve_layer(model, name) for name in layers]
    quantized_classes = _attention_classes(model, attention)
    targets: list[tuple[str, Component]] = [(layer, "embedding") for layer in layers]
    targets += [(conv, "attention") for conv in quantized_classes]
    names = {target: f"{target[0] or _ROOT}/{target[1]}" for target in targets}
    graph = GraphContext(expected=tuple(names.values()), num_buckets=num_buckets)

    setattr(model, _CONTEXT, graph)
    for (layer, component), name in names.items():
        settings = config if component == "embedding" else attention_config
        quantizer = SiteQuantizer(FeatureQuantizer(name, settings), graph)
        module = model.get_submodule(layer)
        module.add_module(_SUBMODULE[component], quantizer)
        if component == "embedding":
            module.register_forward_pre_hook(quantize_input, with_kwargs=True)
        else:
            switch_class(module, quantized_classes[layer])
    model.register_forward_pre_hook(_start_forward, prepend=True)
    model.register_forward_hook(_end_forward, always_call=True)
    return model


def detach(model: nn.Module) -> nn.Module:
    """Remove the quantizers, in place; the model is as it was before :func:`attach`.

    Returns:
        The model itself.

    Raises:
        ModelError:
            If the model has no quantizers.
    """
    context_of(model)
    for module in model.modules():
        if _SUBMODULE["attention"] in module._modules:
            restore_class(module)
        for name in _SUBMODULE.values():
            module._modules.pop(name, None)
        _remove_hook(module._forward_pre_hooks, quantize_input)
    _remove_hook(model._forward_pre_hooks, _start_forward)
    _remove_hook(model._forward_hooks, _end_forward)
    delattr(model, _CONTEXT)
    return model


def bind(model: nn.Module, data: Data) -> None:
    """Set the graph that the model is called with next.

    This is needed before a forward pass on another graph or mini-batch than the last.

    Args:
        model:
            Model with quantizers.
        data:
            Graph, with ``degree_bucket`` (``[N]`` int64) if there are several buckets.

    Raises:
        GraphError:
            If ``degree_bucket`` is needed and missing, or out of range.
        ModelError:
            If the model has no quantizers.
    """
    graph = context_of(model)
    graph.x = data.x
    if graph.num_buckets == 1:
        return
    bucket = data.get("degree_bucket")
    if bucket is None:
        raise GraphError(
            "column degree_bucket: expected one for each node, got none; apply "
            "AddDegreeBuckets() to the graph first"
        )
    highest = int(bucket.max()) if len(bucket) else 0
    if highest >= graph.num_buckets:
        raise GraphError(
            f"column degree_bucket: expected values below {graph.num_buckets}, got {highest}; "
            f"attach with as many buckets as the transform makes"
        )
    graph.degree_bucket = bucket


def set_bit_widths(model: nn.Module, bits: BitWidths) -> None:
    """Choose the bit width of every site.

    Args:
        model:
            Calibrated model with quantizers.
        bits:
            Bit width of each site, 1-8, 16 or 32.

    Raises:
        CalibrationError:
            If the model is not calibrated, or not for one of the widths.
        ModelError:
            If ``bits`` lacks a site of the model or names one that it does not have.
    """
    graph = context_of(model)
    left = dict(bits)
    for name, quantizer in quantizers(model):
        if not quantizer.candidates and any(width != FULL_PRECISION for width in bits.values()):
            raise CalibrationError(f"{name}: expected a calibrated model; call calibrate() first")
        widths = []
        for site in sites_of(quantizer):
            if site not in left and _is_empty(site, quantizer):
                widths.append(FULL_PRECISION)
            elif site not in left:
                raise ModelError(f"bit widths: expected one for site {site}, got none")
            else:
                widths.append(left.pop(site))
        quantizer.set_bit_widths(widths)
    if left:
        raise ModelError(
            f"bit widths: the model has no site {', '.join(map(str, left))}; it has "
            f"{', '.join(graph.expected)}"
        )


def quantizers(model: nn.Module) -> Iterator[tuple[str, FeatureQuantizer]]:
    """Yield the quantizers of a model with their names, ``layer/component``."""
    for module in model.modules():
        if isinstance(module, SiteQuantizer):
            yield module.name, module.quantizer


def sites_of(quantizer: FeatureQuantizer) -> list[Site]:
    """Return the sites of a quantizer: one for each degree bucket, empty ones included."""
    site = Site.parse(quantizer.name)
    if quantizer.num_buckets == 1:
        return [site]
    return [Site(site.layer, site.component, bucket) for bucket in range(quantizer.num_buckets)]


def context_of(model: nn.Module) -> GraphContext:
    """Return the state that all quantizers of a model share.

    Raises:
        ModelError:
            If the model has no quantizers.
    """
    graph = model.__dict__.get(_CONTEXT)
    if not isinstance(graph, GraphContext):
        raise ModelError(
            f"expected a model with quantizers, got a plain {type(model).__name__}; "
            f"attach() them first"
        )
    return graph


def _is_empty(site: Site, quantizer: FeatureQuantizer) -> bool:
    return site.bucket is not None and site.bucket not in quantizer.present_buckets


def _attention_classes(
    model: nn.Module, wanted: Sequence[str] | None
) -> dict[str, type[nn.Module]]:
    """Return the quantizing class of each convolution in ``wanted``; ``None`` means all."""
    if wanted is None:
        found = {name: quantized_class(module) for name, module in model.named_modules()}
        return {name: to for name, to in found.items() if to is not None}
    classes = {}
    for name in wanted:
        conv = model.get_submodule(_resolve_layer(model, name))
        to = quantized_class(conv)
        if to is None:
            raise UnsupportedConvError(
                f"{name}: cannot reach the attention of {type(conv).__name__}; leave it out, or "
                f"register a class that quantizes it with register_attention()"
            )
        classes[name] = to
    return classes


def _resolve_layer(model: nn.Module, name: str) -> str:
    """Return the path of a layer in the model, or raise if there is none of that name."""
    name = "" if name == _ROOT and not hasattr(model, _ROOT) else name
    try:
        model.get_submodule(name)
    except AttributeError:
        raise ModelError(
            f"layer {name!r}: expected one of {', '.join(default_layers(model))}"
        ) from None
    return name


def _remove_hook(hooks: dict[int, Any], function: Callable[..., Any]) -> None:
    # Compared by identity: the handle of a hook removes it from the first model, not from copies.
    for key in [key for key, hook in hooks.items() if hook is function]:
        del hooks[key]


def _start_forward(model: nn.Module, args: tuple[Any, ...]) -> None:
    graph = context_of(model)
    graph.used.clear()
    if model.training:  # otherwise there is no dropout to record
        graph.recorders.append(DropoutRecorder())
        graph.recorders[-1].__enter__()  # type: ignore[no-untyped-call]


def _end_forward(model: nn.Module, args: tuple[Any, ...], output: object) -> None:
    graph = context_of(model)
    if graph.recorders:
        graph.recorders.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]
    missed = [name for name in graph.expected if name not in graph.used]
    if missed and output is not None:  # None: the forward pass itself failed
        raise QuantizerBypassedError(
            f"the forward pass bypassed the quantizer of {', '.join(missed)}: the layer was not "
            f"called, or the model was compiled or scripted after attach(), or a fused "
            f"convolution does not call its own methods; leave the layer out with layers=, or "
            f"run the model eagerly"
        )
