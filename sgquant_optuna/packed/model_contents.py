"""What a packed model consists of, taken from a fake-quantized one: plain values and tensors."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from sgquant_optuna.attachment.quantized_model import detach, quantizers
from sgquant_optuna.exceptions import CalibrationError, GraphError, ModelError
from sgquant_optuna.graph.fingerprint import edges_fingerprint, model_fingerprint
from sgquant_optuna.graph.paper_models import architecture
from sgquant_optuna.graph.sparse_features import SparseFeatures, as_sparse_features
from sgquant_optuna.packed.input_features import InputPart
from sgquant_optuna.packed.integers import pack_integers
from sgquant_optuna.quantization.layout import bits_for
from sgquant_optuna.quantization.memory import FeatureLayout, site_store
from sgquant_optuna.quantization.quantizers import FeatureQuantizer
from sgquant_optuna.quantization.sites import FULL_PRECISION, BitWidths, Site

Contents = tuple[dict[str, Any], dict[str, Tensor]]


@torch.no_grad()
def pack_contents(model: nn.Module, data: Data, layout: FeatureLayout) -> Contents:
    """Take a fake-quantized model apart.

    Args:
        model:
            A model with calibrated quantizers and chosen widths.
        data:
            The graph that it was calibrated on, with ``degree_bucket`` if there are several.
        layout:
            What ``calibrate`` returned.

    Returns:
        Fields (ready for JSON) and tensors.

    Raises:
        CalibrationError:
            If the model is not calibrated.
        GraphError:
            If the graph is not the one of the layout.
        ModelError:
            If no quantized layer takes the graph's features.
    """
    if data.num_nodes != layout.num_nodes:
        raise GraphError(f"graph: expected {layout.num_nodes} nodes, got {data.num_nodes}")
    plain = detach(copy.deepcopy(model))
    tensors = {f"weights.{name}": value for name, value in plain.state_dict().items()}
    bucket = None
    if layout.num_buckets > 1:
        if "degree_bucket" not in data:
            raise GraphError("column degree_bucket: expected one for each node, got none")
        bucket = data.degree_bucket
        tensors["bucket"] = pack_integers(bucket, bits_for(layout.num_buckets - 1))
    assert isinstance(data.x, Tensor)
    given = as_sparse_features(data.x)
    x = given.dense() if isinstance(given, SparseFeatures) else given
    bits: dict[Site, int] = {}
    sites = []
    for name, quantizer in quantizers(model):
        of_site = _sites_of(name, layout)
        if not of_site:
            raise CalibrationError(
                f"{name}: expected a layout of this model; calibrate() gives it"
            )
        for site in of_site:
            bits[site] = quantizer.bit_widths[site.bucket or 0]
        fields: dict[str, Any] = {
            "name": name,
            "bit_widths": list(quantizer.bit_widths),
            "axis": quantizer.config.axis,
            "input": None,
        }
        buckets = bucket if quantizer.num_buckets > 1 else None
        if of_site and layout.sizes[of_site[0]].content is not None:
            sparse = isinstance(given, SparseFeatures) and (
                quantizer.is_identity or quantizer.keeps_zero()
            )
            parts = {}
            for site in of_site:
                part = _input_part(x, buckets, site, quantizer, layout)
                parts[site.bucket or 0] = part
                for tensor, value in part.tensors.items():
                    tensors[f"input.{name}.{site.bucket or 0}.{tensor}"] = value
            fields["input"] = {
                "sparse": sparse,
                "parts": {str(number): part.fields() for number, part in parts.items()},
            }
        elif not quantizer.is_identity:
            table = quantizer.table()
            lines = stored_lines(quantizer.bit_widths, quantizer.config.axis, buckets)
            tensors[f"scale.{name}"] = table.scale[lines]
            tensors[f"zero_point.{name}"] = table.zero_point[lines]
        sites.append(fields)
    if not any(fields["input"] for fields in sites):
        raise ModelError("packed model: expected a quantized layer that takes the graph's x")
    known = architecture(plain)
    config = next(q.config for name, q in quantizers(model) if name.endswith("/embedding"))
    return {
        "model": None if known is None else {"name": known[0], "arguments": known[1]},
        "model_fingerprint": model_fingerprint(plain),
        "edges": edges_fingerprint(data),
        "num_features": x.shape[1],
        "layout": layout.to_dict(),
        "bit_widths": BitWidths(bits).to_dict(),
        "quantizer": config.to_dict(),
        "sites": sites,
    }, {name: tensor.contiguous() for name, tensor in tensors.items()}


def stored_lines(bit_widths: Sequence[int], axis: str, bucket: Tensor | None) -> Tensor | slice:
    """Tell which ranges have to be stored: those of rows that are quantized.

    Args:
        bit_widths:
            Width of each bucket.
        axis:
            What shares a range.
        bucket:
            Degree bucket of each row, ``[N]``; ``None`` for one bucket.
    """
    quantized = torch.tensor(bit_widths) != FULL_PRECISION
    if axis != "row":
        return quantized
    return slice(None) if bucket is None else quantized[bucket.long()]


def _sites_of(name: str, layout: FeatureLayout) -> list[Site]:
    site = Site.parse(name)
    return [
        known
        for known in layout.sizes
        if (known.layer, known.component) == (site.layer, site.component)
    ]


def _input_part(
    x: Tensor,
    bucket: Tensor | None,
    site: Site,
    quantizer: FeatureQuantizer,
    layout: FeatureLayout,
) -> InputPart:
    number = site.bucket or 0
    rows = x if bucket is None else x[bucket == number]
    width = quantizer.bit_widths[number]
    scale = zero_point = x.new_ones(1, 1)
    if width != FULL_PRECISION:
        table = quantizer.table()
        line: Tensor | slice = slice(number, number + 1)
        if quantizer.config.axis == "row":
            line = slice(None) if bucket is None else bucket == number
        scale, zero_point = table.scale[line], table.zero_point[line]
    store, expected = site_store(site, layout.sizes[site], width)
    part = InputPart.from_dense(rows, store, width, scale, zero_point, quantizer.config.rounding)
    if part.nbytes != expected:
        raise GraphError(
            f"{site}: the accounting says {expected} bytes, the graph takes {part.nbytes}; give "
            f"the graph and the layout of one calibration"
        )
    return part
