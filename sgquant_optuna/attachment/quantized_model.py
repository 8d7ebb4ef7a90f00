"""Attaching quantizers to a PyG model, choosing their bit widths, and detaching them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from sgquant_optuna.attachment.attention import quantized_class
from sgquant_optuna.attachment.caches import restore_caches, suspend_caches
from sgquant_optuna.attachment.class_switch import restore_class, switch_class
from sgquant_optuna.attachment.graph_context import GraphContext
from sgquant_optuna.attachment.hops import (
    HOPS,
    hop_quantizer,
    remove_hook,
    remove_hops,
    with_states,
)
from sgquant_optuna.attachment.layer_arguments import ROOT
from sgquant_optuna.attachment.layer_inputs import (
    default_layers,
    forget_arguments,
    fused_attention,
    quantize_input,
)
from sgquant_optuna.attachment.quantized_call import CONTEXT, context_of, with_quantized_call
from sgquant_optuna.attachment.site_quantizer import SiteQuantizer
from sgquant_optuna.attachment.typed_inputs import FEATURES, UNUSED
from sgquant_optuna.exceptions import CalibrationError, ModelError, UnsupportedConvError
from sgquant_optuna.graph.node_types import Graph
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.quantizers import FeatureQuantizer
from sgquant_optuna.quantization.sites import FULL_PRECISION, BitWidths, Component, Site

ATTENTION = "attention_quantizer"
"""Submodule of a convolution: the quantizer of its attention."""


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
    if CONTEXT in model.__dict__:
        raise ModelError("expected a plain model, got one with quantizers; detach() it first")
    config = config or QuantizerConfig()
    attention_config = replace(config, axis="tensor")  # attention always has one range
    found = default_layers(model)
    chosen = found if layers is None else [_resolve_layer(model, name) for name in layers]
    quantized_classes = _attention_classes(model, attention)
    graph = GraphContext(
        expected=(),
        num_buckets=num_buckets,
        by_row=config.axis == "row",
        chosen=layers is not None,
        notes=_fused_notes(model) if layers is None else (),
    )
    setattr(model, CONTEXT, graph)
    try:
        suspend_caches(model)
        for layer in chosen:
            quantizer = _quantizer(layer, "embedding", config, graph)
            _attach_features(model.get_submodule(layer), layer, quantizer)
        for layer, to in quantized_classes.items():
            conv = model.get_submodule(layer)
            conv.add_module(ATTENTION, _quantizer(layer, "attention", attention_config, graph))
            switch_class(conv, to)
        graph.expected = tuple(name for name, _ in quantizers(model))
        switch_class(model, with_quantized_call(type(model)))
    except BaseException:
        detach(model)
        raise
    return model


def _quantizer(
    layer: str, component: Component, config: QuantizerConfig, graph: GraphContext
) -> SiteQuantizer:
    return SiteQuantizer(FeatureQuantizer(f"{layer or ROOT}/{component}", config), graph)


def _attach_features(layer: nn.Module, path: str, quantizer: SiteQuantizer) -> None:
    layer.add_module(FEATURES, quantizer)
    layer.register_forward_pre_hook(quantize_input, with_kwargs=True)
    to = with_states(layer)
    if to is not None:
        states = hop_quantizer(path or ROOT, quantizer.quantizer.config, quantizer.graph)
        layer.add_module(HOPS, states)
        switch_class(layer, to)


def _fused_notes(model: nn.Module) -> tuple[str, ...]:
    return tuple(
        f"{path}: not quantized and not counted, because torch runs {name} fused"
        for path, name in fused_attention(model).items()
    )


def detach(model: nn.Module) -> nn.Module:
    """Remove the quantizers, in place; the model is as it was before :func:`attach`.

    Caches of convolutions are on again where they were, but empty.

    Returns:
        The model itself.

    Raises:
        ModelError:
            If the model has no quantizers.
    """
    context_of(model)
    for module in model.modules():
        leave_out_attention(module)
        leave_out(module)
        module.__dict__.pop(UNUSED, None)
    restore_caches(model)
    delattr(model, CONTEXT)
    return model


def leave_out(layer: nn.Module) -> None:
    """Remove the quantizers of the features of a layer, in place."""
    forget_arguments(layer)
    remove_hops(layer)
    remove_hook(layer._forward_pre_hooks, quantize_input)
    for name in (FEATURES, HOPS):
        layer._modules.pop(name, None)


def leave_out_attention(module: nn.Module) -> None:
    """Give a module its plain class, and remove the quantizer of its attention, in place."""
    restore_class(module)
    module._modules.pop(ATTENTION, None)


def bind(model: nn.Module, data: Graph) -> None:
    """Set the graph that the model is called with next.

    This is needed before a forward pass on another graph or mini-batch than the last, where
    widths depend on the degree. A model whose ``forward`` takes the graph itself binds it alone.

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
    context_of(model).bind(data)


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
    for name, module in site_quantizers(model):
        yield name, module.quantizer


def site_quantizers(model: nn.Module) -> Iterator[tuple[str, SiteQuantizer]]:
    """Yield the modules that quantize, each once, with their names, ``layer/component``."""
    for module in model.modules():
        if isinstance(module, SiteQuantizer):
            yield module.name, module


def sites_of(quantizer: FeatureQuantizer) -> list[Site]:
    """Return the sites of a quantizer: one for each degree bucket, empty ones included."""
    site = Site.parse(quantizer.name)
    if quantizer.num_buckets == 1:
        return [site]
    return [Site(site.layer, site.component, bucket) for bucket in range(quantizer.num_buckets)]


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
    name = "" if name == ROOT and not hasattr(model, ROOT) else name
    try:
        model.get_submodule(name)
    except AttributeError:
        raise ModelError(
            f"layer {name!r}: expected one of {', '.join(default_layers(model))}"
        ) from None
    return name
