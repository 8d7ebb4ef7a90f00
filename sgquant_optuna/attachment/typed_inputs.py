"""Features of a layer in a heterogeneous graph: a site for each node type, shared by relations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from sgquant_optuna.attachment.graph_context import GraphContext
from sgquant_optuna.attachment.layer_arguments import (
    edge_features,
    named_arguments,
    node_dim,
    part_of,
    parts_of,
    position_of,
)
from sgquant_optuna.attachment.site_quantizer import SiteQuantizer
from sgquant_optuna.attachment.type_names import Place
from sgquant_optuna.quantization.quantizers import FeatureQuantizer

FEATURES = "feature_quantizer"
"""Submodule of a layer: the quantizer of its main features."""

ARGUMENTS = "quantized_arguments"
"""Attribute of a layer: name and position of each quantized argument, and its submodule."""

MAIN = "untyped_quantizer"
"""Attribute of a layer: the quantizer that it had before its node types were known."""

UNUSED = "unused_arguments"
"""Attribute of a layer: names of its features that no output depends on."""


def observe_types(
    main: SiteQuantizer, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Record the features of each node type that a layer is called with.

    The convolutions of all relations of a layer share the quantizer of a tensor that several of
    them take, which is stored once.

    Args:
        main:
            Quantizer that stands at the layer.
        layer:
            Layer that is called.
        args:
            Positional arguments of the call.
        kwargs:
            Keyword arguments of the call.
    """
    graph = main.graph
    assert graph.types is not None and graph.observations is not None
    main = layer.__dict__.setdefault(MAIN, main)
    path = main.name.rpartition("/")[0]
    place = graph.types.place(path)
    for argument in edge_features(named_arguments(layer, args, kwargs)):
        graph.note(f"{path}: features of edges ({argument}) are not quantized and not counted")
    known: dict[str, tuple[int, str]] = layer.__dict__.setdefault(ARGUMENTS, {})
    for argument, x in parts_of(layer, args, kwargs).items():
        if argument not in known:
            unused: list[str] = layer.__dict__.get(UNUSED, [])
            unused[:] = [one for one in unused if one != argument]
            name = f"{FEATURES}_{len(known)}"
            known[argument] = (position_of(layer, argument), name)
            holder = _shared(graph, place.group, x) or _new(main, path, place, argument, x)
            layer.add_module(name, holder)
            if name.endswith("_0"):
                layer._modules[FEATURES] = holder
        quantizer = layer.get_submodule(known[argument][1])
        assert isinstance(quantizer, SiteQuantizer)
        if not any(call.x is x for call in graph.observations.get(quantizer.name, ())):
            quantizer(x, node_dim(layer))
        graph.used.add(quantizer.name)


def _shared(graph: GraphContext, group: str, x: Tensor) -> SiteQuantizer | None:
    """Return the quantizer of a layer of the group that took the same tensor."""
    return next(
        (one for one in _seen(graph, x) if isinstance(one, SiteQuantizer) and one.group == group),
        None,
    )


def _seen(graph: GraphContext, x: Tensor) -> Iterator[nn.Module]:
    assert graph.observations is not None
    for calls in graph.observations.values():
        yield from (call.quantizer for call in calls if call.x is x)


def _new(main: SiteQuantizer, path: str, place: Place, argument: str, x: Tensor) -> SiteQuantizer:
    """Make the quantizer of features that no other layer of the group has taken."""
    graph, part = main.graph, part_of(argument)
    assert graph.observations is not None
    node_type = place.target if part == "1" else place.source
    layer = path if node_type is None else place.site(node_type)
    if part not in (None, "0", "1"):
        node_type, layer = part, f"{path}.{part}"
    elif node_type is None:
        node_type = _type_of(graph, x)
        if part is not None:
            layer = f"{path}.{node_type or ('source', 'target')[int(part)]}"
    if f"{layer}/embedding" in graph.observations:  # other features than the group's
        layer = f"{path}.{node_type}"
    plain = FeatureQuantizer(f"{layer}/embedding", main.quantizer.config)
    return SiteQuantizer(plain, graph, node_type, place.group)


def _type_of(graph: GraphContext, x: Tensor) -> str | None:
    """Return the node type of features: the input's, or the only one with as many nodes."""
    same = [name for name, nodes in graph.nodes.items() if nodes.x is x]
    fitting = [name for name, nodes in graph.nodes.items() if nodes.num_nodes == len(x)]
    found = same or fitting
    return found[0] if len(found) == 1 else None
