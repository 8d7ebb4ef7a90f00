"""Calibration: measuring the ranges and sizes of every site in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from sgquant_optuna.attachment.graph_context import BoundNodes, GraphContext, Observation
from sgquant_optuna.attachment.hops import HOPS, hop_quantizer, install_hops, remove_hops, traced
from sgquant_optuna.attachment.input_contents import input_contents
from sgquant_optuna.attachment.layer_inputs import forget_arguments
from sgquant_optuna.attachment.quantized_call import context_of
from sgquant_optuna.attachment.quantized_model import leave_out, quantizers, sites_of
from sgquant_optuna.attachment.site_quantizer import SiteQuantizer
from sgquant_optuna.attachment.typed_inputs import FEATURES
from sgquant_optuna.attachment.unused_features import leave_out_unused
from sgquant_optuna.exceptions import ModelError
from sgquant_optuna.graph.forward_pass import Forward, forward
from sgquant_optuna.graph.node_types import Graph
from sgquant_optuna.quantization.input_stores import InputContent
from sgquant_optuna.quantization.memory import FeatureLayout, SiteSize
from sgquant_optuna.quantization.quantizers import FeatureQuantizer
from sgquant_optuna.quantization.sites import Site


@torch.no_grad()
def calibrate(
    model: nn.Module, data: Graph, *, candidates: Sequence[int], forward: Forward = forward
) -> FeatureLayout:
    """Measure every range and every size in one forward pass, once for all trials.

    The graph is bound to the model, as :func:`.bind` does. All widths are 32 bits afterwards.
    The pass also finds features that no one can know before: second features of a convolution
    (``conv1.x_0``), and hidden ones between its hops (``conv1.hops``), for which it is repeated
    with gradients. If anything is raised, the model is as it was before.

    Args:
        model:
            Model with quantizers, trained at full precision.
        data:
            Graph, with ``degree_bucket`` (``[N]`` int64) if there are several buckets.
        candidates:
            Bit widths to measure ranges for.
        forward:
            Function that calls the model with the graph; by default with the columns that it
            needs.

    Returns:
        Size of each site, in the order of the forward pass. A degree bucket without nodes has no
        site. A layer that is called several times stores its input each time: the rows of all
        calls are counted, the ranges once.

    Raises:
        CalibrationError:
            If a layer is called with NaN or infinity.
        GraphError:
            If ``degree_bucket`` is needed and missing, or out of range.
        ModelError:
            If the model has no quantizers, or the features of a layer cannot be told.
        QuantizerBypassedError:
            If the forward pass bypasses a quantizer.
    """
    graph = context_of(model)
    graph.bind(data)
    _forget(model)
    graph.expected = tuple(name for name, _ in quantizers(model))
    try:
        with evaluating(model):
            observations = _observe_all(model, data, forward)
        by_name = dict(quantizers(model))
        sizes: dict[Site, SiteSize] = {}
        for name, calls in observations.items():
            sizes |= _measure(by_name[name], calls, graph, candidates)
    except BaseException:
        _forget(model)
        raise
    graph.expected = tuple(by_name)
    return FeatureLayout(sizes, graph.num_nodes, graph.num_buckets, graph.notes)


def _forget(model: nn.Module) -> None:
    for module in model.modules():
        forget_arguments(module)
        remove_hops(module)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation; restore the mode of each module and the random state."""
    training = {module: module.training for module in model.modules()}
    devices = {one.device for one in model.parameters() if one.device.type == "cuda"}
    try:
        with torch.random.fork_rng(list(devices)):
            model.eval()
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _observe_all(model: nn.Module, data: Graph, forward: Forward) -> dict[str, list[Observation]]:
    """Return the calls of each quantizer in the order of the forward pass, hops included."""
    convs = [
        module
        for module in model.modules()
        if isinstance(module, MessagePassing)
        and FEATURES in module._modules
        and HOPS not in module._modules
    ]
    with traced(convs) as traces:
        found = _observe(model, data, forward)
    _leave_out_layers_without_features(model, found)
    if context_of(model).types is not None:
        for name in leave_out_unused(model, lambda: forward(model, data)):
            found.pop(name)
    context_of(model).expected = tuple(name for name, _ in quantizers(model))
    repeated = [trace.conv for trace in traces if trace.most_calls > 1]
    if not repeated or not _find_hops(repeated, model, data, forward):
        return found
    with_hops = _observe(model, data, forward)
    ordered: dict[str, list[Observation]] = {}
    for name, calls in found.items():
        ordered[name] = calls
        hops = name.replace("/embedding", ".hops/embedding")
        ordered |= {hops: with_hops[hops]} if hops in with_hops else {}
    return ordered


def _observe(model: nn.Module, data: Graph, forward: Forward) -> dict[str, list[Observation]]:
    """Return the calls of each quantizer in one forward pass."""
    graph = context_of(model)
    graph.observations = {}
    try:
        forward(model, data)
        return graph.observations
    finally:
        graph.observations = None


def _find_hops(
    convs: list[MessagePassing], model: nn.Module, data: Graph, forward: Forward
) -> bool:
    """Put quantizers between the hops of convolutions; return whether there are any."""
    with torch.enable_grad(), traced(convs) as traces:
        forward(model, data)
    traces = [trace for trace in traces if trace.ports]
    for trace in traces:
        features = trace.conv.get_submodule(FEATURES)
        assert isinstance(features, SiteQuantizer)
        path = features.name.rpartition("/")[0]
        made = hop_quantizer(path, features.quantizer.config, features.graph)
        install_hops(trace.conv, made, list(trace.ports))
    return bool(traces)


def _leave_out_layers_without_features(
    model: nn.Module, observations: Mapping[str, list[Observation]]
) -> None:
    """Remove the quantizers of layers that were called without features, and note it."""
    graph = context_of(model)
    for module in model.modules():
        quantizer = module._modules.get(FEATURES)
        if not isinstance(quantizer, SiteQuantizer) or quantizer.name in observations:
            continue
        layer = quantizer.name.rpartition("/")[0]
        if graph.chosen:
            raise ModelError(
                f"{layer}: expected floating-point features, [N, F], among the arguments of "
                f"{type(module).__name__}, got none; leave it out of layers="
            )
        leave_out(module)
        graph.note(f"{layer}: not quantized, because {type(module).__name__} takes no features")


@dataclass(frozen=True)
class _Rows:
    """The calls of one site as matrices, and the degree bucket of each row, if rows are nodes."""

    matrices: list[Tensor]
    bucket: Tensor | None

    @classmethod
    def of(cls, name: str, calls: Sequence[Observation], graph: GraphContext) -> _Rows:
        xs = [call.x for call in calls]
        matrices = [x if x.dim() == 2 else x.reshape(-1, x.shape[-1]) for x in xs]
        widths = sorted({x.shape[1] for x in matrices})
        if len(widths) > 1:
            raise ModelError(
                f"{name}: expected features of one width in all calls of the layer, got "
                f"{' and '.join(map(str, widths))} columns; give each width its own layer"
            )
        # Attention has a row for each edge, even where there are as many edges as nodes.
        if graph.num_buckets == 1 or Site.parse(name).component == "attention":
            return cls(matrices, None)
        buckets = [_nodes_of(call, graph).buckets_of(call.x, call.node_dim) for call in calls]
        known = [bucket for bucket in buckets if bucket is not None]
        fits = [
            len(one) == len(x) for one, x in zip(buckets, matrices, strict=True) if one is not None
        ]
        if len(known) < len(calls) or not all(fits):
            return cls(matrices, None)  # the rows are not nodes, for instance after pooling
        return cls(matrices, known[0] if len(calls) == 1 else torch.cat(known))


def _nodes_of(call: Observation, graph: GraphContext) -> BoundNodes:
    assert isinstance(call.quantizer, SiteQuantizer)
    return graph.of_type(call.quantizer.node_type)


def _measure(
    quantizer: FeatureQuantizer,
    calls: Sequence[Observation],
    graph: GraphContext,
    candidates: Sequence[int],
) -> dict[Site, SiteSize]:
    """Measure the ranges of a site, and return its sizes: the rows of all calls."""
    rows = _Rows.of(quantizer.name, calls, graph)
    x = rows.matrices[0] if len(calls) == 1 else torch.cat(rows.matrices)
    calls_of_row = 1
    if quantizer.config.axis == "row" and len(calls) > 1:
        _calibrate_rows_of_calls(quantizer, rows, candidates, graph.num_buckets)
        calls_of_row = len(calls)
    else:
        quantizer.calibrate(x, candidates, bucket=rows.bucket, num_buckets=graph.num_buckets)
    is_input = len(calls) == 1 and x is _nodes_of(calls[0], graph).x and not x.requires_grad
    contents = input_contents(quantizer, x, rows.bucket) if is_input else {}
    return _site_sizes(quantizer, x, rows.bucket, contents, calls_of_row=calls_of_row)


def _calibrate_rows_of_calls(
    quantizer: FeatureQuantizer, rows: _Rows, candidates: Sequence[int], num_buckets: int
) -> None:
    """Give each row one range for the values that it has in all calls."""
    lengths = {len(x) for x in rows.matrices}
    if len(lengths) > 1:
        raise ModelError(
            f"{quantizer.name}: expected as many rows in all calls of the layer, got "
            f"{' and '.join(map(str, sorted(lengths)))}; use axis='tensor' or 'column'"
        )
    bucket = None if rows.bucket is None else rows.bucket[: lengths.pop()]
    x = torch.cat(rows.matrices, dim=1)
    quantizer.calibrate(x, candidates, bucket=bucket, num_buckets=num_buckets)


def _site_sizes(
    quantizer: FeatureQuantizer,
    x: Tensor,
    bucket: Tensor | None,
    contents: Mapping[int, InputContent],
    *,
    calls_of_row: int,
) -> dict[Site, SiteSize]:
    num_rows, num_columns = x.shape
    counts = [num_rows]
    if bucket is not None:
        counts = torch.bincount(bucket, minlength=quantizer.num_buckets).tolist()
    sizes = {}
    for site, rows in zip(sites_of(quantizer), counts, strict=True):
        ranges = {"column": num_columns, "row": rows // calls_of_row}
        if rows:
            content = contents.get(0 if bucket is None else site.bucket or 0)
            num_ranges = ranges.get(quantizer.config.axis, 1)
            sizes[site] = SiteSize(rows, num_columns, num_ranges, content)
    return sizes
