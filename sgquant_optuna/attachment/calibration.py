"""Calibration: measuring the ranges and sizes of every site in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from sgquant_optuna.attachment.input_contents import input_contents
from sgquant_optuna.attachment.quantized_model import bind, context_of, quantizers, sites_of
from sgquant_optuna.graph.forward_pass import Forward
from sgquant_optuna.quantization.input_stores import InputContent
from sgquant_optuna.quantization.memory import FeatureLayout, SiteSize
from sgquant_optuna.quantization.quantizers import FeatureQuantizer
from sgquant_optuna.quantization.sites import Site


@torch.no_grad()
def calibrate(
    model: nn.Module, data: Data, *, candidates: Sequence[int], forward: Forward
) -> FeatureLayout:
    """Measure every range and every size in one forward pass, once for all trials.

    The graph is bound to the model, as :func:`.bind` does. All widths are 32 bits afterwards.

    Args:
        model:
            Model with quantizers, trained at full precision.
        data:
            Graph, with ``degree_bucket`` (``[N]`` int64) if there are several buckets.
        candidates:
            Bit widths to measure ranges for.
        forward:
            Function that calls the model with the graph.

    Returns:
        Size of each site, in the order of the forward pass. A degree bucket without nodes has no
        site.

    Raises:
        CalibrationError:
            If a layer is called with NaN or infinity.
        GraphError:
            If ``degree_bucket`` is needed and missing, or out of range.
        ModelError:
            If the model has no quantizers.
        QuantizerBypassedError:
            If the forward pass bypasses a quantizer.
    """
    bind(model, data)
    observations = _observe(model, data, forward)
    graph = context_of(model)
    by_name = dict(quantizers(model))
    node_bucket = graph.degree_bucket if graph.num_buckets > 1 else None
    sizes: dict[Site, SiteSize] = {}
    for name, calls in observations.items():
        quantizer = by_name[name]
        # Attention has a row for each edge, even where there are as many edges as nodes.
        by_node = Site.parse(name).component == "embedding"
        x, bucket = _concatenate(calls, node_bucket if by_node else None)
        quantizer.calibrate(x, candidates, bucket=bucket, num_buckets=graph.num_buckets)
        contents = input_contents(quantizer, x, bucket) if x is graph.x else {}
        sizes |= _site_sizes(quantizer, x, bucket, contents)
    assert data.num_nodes is not None
    return FeatureLayout(sizes, data.num_nodes, graph.num_buckets)


def _observe(model: nn.Module, data: Data, forward: Forward) -> dict[str, list[Tensor]]:
    """Return the values of each quantizer in one forward pass, one tensor for each call."""
    graph = context_of(model)
    was_training = model.training
    graph.observations = {}
    try:
        forward(model.eval(), data)
        return graph.observations
    finally:
        graph.observations = None
        model.train(was_training)


def _concatenate(calls: list[Tensor], bucket: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Concatenate the values of all calls of one layer, and the degree bucket of each row."""
    x = calls[0] if len(calls) == 1 else torch.cat(calls)
    if bucket is None or any(call.shape[0] != len(bucket) for call in calls):
        return x, None  # the rows are not nodes, for instance after pooling
    return x, bucket if len(calls) == 1 else bucket.repeat(len(calls))


def _site_sizes(
    quantizer: FeatureQuantizer,
    x: Tensor,
    bucket: Tensor | None,
    contents: Mapping[int, InputContent],
) -> dict[Site, SiteSize]:
    num_rows, num_columns = x.shape
    counts = [num_rows]
    if bucket is not None:
        counts = torch.bincount(bucket, minlength=quantizer.num_buckets).tolist()
    sizes = {}
    for site, rows in zip(sites_of(quantizer), counts, strict=True):
        num_ranges = {"column": num_columns, "row": rows}.get(quantizer.config.axis, 1)
        if rows:
            content = contents.get(0 if bucket is None else site.bucket or 0)
            sizes[site] = SiteSize(rows, num_columns, num_ranges, content)
    return sizes
