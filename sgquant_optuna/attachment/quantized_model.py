"""Quantizers onto a user's PyG model and off again: attach, bind, calibrate, set, detach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from sgquant_optuna.attachment.attention import quantized_class, restore_class, switch_class
from sgquant_optuna.attachment.dropout import DropoutRecorder
from sgquant_optuna.attachment.input_contents import input_contents
from sgquant_optuna.attachment.layer_inputs import default_layers, quantize_input
from sgquant_optuna.attachment.site_quantizer import GraphContext, SiteQuantizer
from sgquant_optuna.exceptions import (
    CalibrationError,
    GraphError,
    ModelError,
    QuantizerBypassedError,
    UnsupportedConvError,
)
from sgquant_optuna.graph.forward_pass import Forward
from sgquant_optuna.quantization.input_stores import InputContent
from sgquant_optuna.quantization.memory import FeatureLayout, SiteSize
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.quantizers import FeatureQuantizer
from sgquant_optuna.quantization.sites import FULL_PRECISION, BitWidths, Component, Site

_SUBMODULE: dict[Component, str] = {
    "embedding": "feature_quantizer",
    "attention": "attention_quantizer",
}
_CONTEXT = "graph_context"
_ROOT = "model"  # how a model that is one bare convolution calls its only layer


def attach(
    model: nn.Module,
    *,
    config: QuantizerConfig | None = None,
    num_buckets: int = 1,
    layers: Sequence[str] | None = None,
    attention: Sequence[str] | None = None,
) -> nn.Module:
    """Put quantizers onto a model, in place. They do nothing until they are told widths.

    With 32 bits everywhere, the result is bit-identical to the plain model's, in training too.

    Args:
        model:
            Any module with PyG convolutions.
        config:
            Settings of every quantizer; the measured best by default.
        num_buckets:
            Degree buckets B; ``data.degree_bucket`` is needed if it is above 1.
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
            If attention is asked of a convolution that cannot be reached.
    """
    if _CONTEXT in model.__dict__:
        raise ModelError("expected a plain model, got one with quantizers; detach() it first")
    config = config or QuantizerConfig()
    found = default_layers(model)
    layers = found if layers is None else [_check_layer(model, name) for name in layers]
    switches = _attention_classes(model, attention)
    attention_config = QuantizerConfig(
        rounding=config.rounding,
        range_estimator=config.range_estimator,
        percentile=config.percentile,
    )
    sites: list[tuple[str, Component]] = [(layer, "embedding") for layer in layers]
    sites += [(conv, "attention") for conv in switches]
    names = {site: f"{site[0] or _ROOT}/{site[1]}" for site in sites}
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
            switch_class(module, switches[layer])
    model.register_forward_pre_hook(_start_forward, prepend=True)
    model.register_forward_hook(_end_forward, always_call=True)
    return model


def detach(model: nn.Module) -> nn.Module:
    """Take the quantizers off again, in place; the model is as it was before :func:`attach`.

    Raises:
        ModelError:
            If the model has no quantizers.
    """
    _context(model)
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
    """Tell the quantizers which graph the model is about to be called with.

    Needed before a forward pass on another graph or mini-batch than the last.

    Args:
        model:
            A model with quantizers.
        data:
            Its ``degree_bucket`` (``[N]`` int64) is read if there are several buckets.

    Raises:
        GraphError:
            If ``degree_bucket`` is needed and missing, or out of range.
    """
    graph = _context(model)
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


@torch.no_grad()
def calibrate(
    model: nn.Module, data: Data, *, candidates: Sequence[int], forward: Forward
) -> FeatureLayout:
    """Measure every range and every size in one forward pass, once for all trials.

    Args:
        model:
            A model with quantizers, trained at full precision.
        data:
            The graph.
        candidates:
            Bit widths to measure ranges for.
        forward:
            Calls the model with the graph.

    Returns:
        The sites in the order of the forward pass, with their sizes. A degree bucket without
        nodes has no site.

    Raises:
        CalibrationError:
            If a layer sees NaN or infinity.
        QuantizerBypassedError:
            If the forward pass goes round a quantizer.
    """
    graph = _context(model)
    bind(model, data)
    was_training = model.training
    graph.observations = {}
    try:
        forward(model.eval(), data)
        observations = graph.observations
    finally:
        graph.observations = None
        model.train(was_training)

    by_name = dict(quantizers(model))
    bucket = graph.degree_bucket if graph.num_buckets > 1 else None
    sizes: dict[Site, SiteSize] = {}
    for name, seen in observations.items():
        quantizer = by_name[name]
        # Attention has a row for each edge, even where there are as many edges as nodes.
        by_node = Site.parse(name).component == "embedding"
        x, buckets = _pooled(seen, bucket if by_node else None)
        quantizer.calibrate(x, candidates, bucket=buckets, num_buckets=graph.num_buckets)
        contents = input_contents(quantizer, x, buckets) if x is graph.x else {}
        sizes |= _sizes(quantizer, x, buckets, contents)
    assert data.num_nodes is not None
    return FeatureLayout(sizes, data.num_nodes, graph.num_buckets)


def set_bit_widths(model: nn.Module, bits: BitWidths) -> None:
    """Choose the width of every site.

    Raises:
        CalibrationError:
            If the model is not calibrated, or not for one of the widths.
        ModelError:
            If ``bits`` lacks a site of the model or names one that it does not have.
    """
    graph = _context(model)
    left = dict(bits)
    for name, quantizer in quantizers(model):
        if not quantizer.candidates and any(width != FULL_PRECISION for width in bits.values()):
            raise CalibrationError(f"{name}: expected a calibrated model; call calibrate() first")
        widths = []
        for site in _sites(quantizer):
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


def _sites(quantizer: FeatureQuantizer) -> list[Site]:
    site = Site.parse(quantizer.name)
    if quantizer.num_buckets == 1:
        return [site]
    return [Site(site.layer, site.component, bucket) for bucket in range(quantizer.num_buckets)]


def _is_empty(site: Site, quantizer: FeatureQuantizer) -> bool:
    return site.bucket is not None and site.bucket not in quantizer.present_buckets


def _pooled(seen: list[Tensor], bucket: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Join what a layer saw, if it was called several times, with the bucket of each row."""
    x = seen[0] if len(seen) == 1 else torch.cat(seen)
    if bucket is None or any(part.shape[0] != len(bucket) for part in seen):
        return x, None  # not one row a node, for instance after pooling
    return x, bucket if len(seen) == 1 else bucket.repeat(len(seen))


def _sizes(
    quantizer: FeatureQuantizer,
    x: Tensor,
    bucket: Tensor | None,
    contents: dict[int, InputContent],
) -> dict[Site, SiteSize]:
    num_rows, columns = x.shape
    counts = [num_rows]
    if bucket is not None:
        counts = torch.bincount(bucket, minlength=quantizer.num_buckets).tolist()
    sizes = {}
    for site, rows in zip(_sites(quantizer), counts, strict=True):
        num_ranges = {"column": columns, "row": rows}.get(quantizer.config.axis, 1)
        if rows:
            content = contents.get(0 if bucket is None else site.bucket or 0)
            sizes[site] = SiteSize(rows, columns, num_ranges, content)
    return sizes


def _attention_classes(
    model: nn.Module, wanted: Sequence[str] | None
) -> dict[str, type[nn.Module]]:
    if wanted is None:
        found = {name: quantized_class(module) for name, module in model.named_modules()}
        return {name: to for name, to in found.items() if to is not None}
    classes = {}
    for name in wanted:
        conv = model.get_submodule(_check_layer(model, name))
        to = quantized_class(conv)
        if to is None:
            raise UnsupportedConvError(
                f"{name}: cannot reach the attention of {type(conv).__name__}; leave it out, or "
                f"tell how it is quantized with register_attention()"
            )
        classes[name] = to
    return classes


def _check_layer(model: nn.Module, name: str) -> str:
    name = "" if name == _ROOT and not hasattr(model, _ROOT) else name
    try:
        model.get_submodule(name)
    except AttributeError:
        raise ModelError(
            f"layer {name!r}: expected one of {', '.join(default_layers(model))}"
        ) from None
    return name


def quantizers(model: nn.Module) -> Iterator[tuple[str, FeatureQuantizer]]:
    """Yield the quantizers of a model with their names, ``layer/component``."""
    for module in model.modules():
        if isinstance(module, SiteQuantizer):
            yield module.name, module.quantizer


def _context(model: nn.Module) -> GraphContext:
    graph = model.__dict__.get(_CONTEXT)
    if not isinstance(graph, GraphContext):
        raise ModelError(
            f"expected a model with quantizers, got a plain {type(model).__name__}; "
            f"attach() them first"
        )
    return graph


def _remove_hook(hooks: dict[int, Any], function: Callable[..., Any]) -> None:
    # By identity: the handle of a hook removes it from the first model only, not from copies.
    for key in [key for key, hook in hooks.items() if hook is function]:
        del hooks[key]


def _start_forward(model: nn.Module, args: tuple[Any, ...]) -> None:
    graph = _context(model)
    graph.used.clear()
    if model.training:  # else there is no dropout to record
        graph.recorders.append(DropoutRecorder())
        graph.recorders[-1].__enter__()  # type: ignore[no-untyped-call]


def _end_forward(model: nn.Module, args: tuple[Any, ...], output: object) -> None:
    graph = _context(model)
    if graph.recorders:
        graph.recorders.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]
    missed = [name for name in graph.expected if name not in graph.used]
    if missed and output is not None:  # None: the forward pass itself failed
        raise QuantizerBypassedError(
            f"the forward pass went round the quantizer of {', '.join(missed)}: the layer was "
            f"not called, or the model was compiled or scripted after attach(), or a fused "
            f"convolution does not call its own methods; leave the layer out with layers=, or "
            f"run the model eagerly"
        )
