"""A fake-quantized model taken apart: the contents of its packed file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from sgquant_optuna.attachment.hops import HOPS, hop_ports
from sgquant_optuna.attachment.layer_inputs import layer_quantizers
from sgquant_optuna.attachment.quantized_model import detach, quantizers, site_quantizers
from sgquant_optuna.exceptions import CalibrationError, GraphError, ModelError
from sgquant_optuna.graph.fingerprint import edges_fingerprint, model_fingerprint
from sgquant_optuna.graph.model_copies import copy_model
from sgquant_optuna.graph.node_types import ONLY_TYPE, Graph, node_parts
from sgquant_optuna.graph.paper_models import architecture
from sgquant_optuna.graph.sparse_features import SparseFeatures, as_sparse_features
from sgquant_optuna.packed.feature_use import feature_use
from sgquant_optuna.packed.graph_features import input_part
from sgquant_optuna.packed.integers import pack_buckets
from sgquant_optuna.packed.model_file import (
    WEIGHTS,
    ModelContents,
    constant_name,
    input_prefix,
    range_names,
)
from sgquant_optuna.packed.model_header import ModelHeader, ModelSite
from sgquant_optuna.packed.model_weights import weights_of
from sgquant_optuna.packed.packed_types import PackedTypes, buckets_of_all
from sgquant_optuna.quantization.memory import FeatureLayout
from sgquant_optuna.quantization.quantizers import FeatureQuantizer
from sgquant_optuna.quantization.sites import BitWidths, Site


@torch.no_grad()
def contents_of(
    model: nn.Module,
    data: Graph,
    layout: FeatureLayout,
    *,
    answers: str | None = None,
    constants: Mapping[tuple[str, int], Tensor] | None = None,
    exact: bool = False,
    degree_edges: Sequence[int] | None = None,
) -> ModelContents:
    """Take a fake-quantized model apart.

    Args:
        model:
            Model with calibrated quantizers and chosen widths.
        data:
            Graph of the calibration, with ``degree_bucket`` if there are several.
        layout:
            Result of ``calibrate``.
        answers:
            Node type of the scores, if the graph is heterogeneous.
        constants:
            Features that a layer takes and that are computed of ``x`` alone, ``[N, F]``, by
            the name of its site and the number of its call.
        exact:
            Whether to store ``x`` exactly, for uses outside of quantized layers.
        degree_edges:
            Degrees at which the degree buckets begin, if they are known.

    Raises:
        CalibrationError:
            If the layout is not that of the model.
        GraphError:
            If the graph is not that of the layout.
        ModelError:
            If weights or features are not float32.
    """
    if data.num_nodes != layout.num_nodes:
        raise GraphError(f"graph: expected {layout.num_nodes} nodes, got {data.num_nodes}")
    plain = detach(copy_model(model)).eval()
    weights, tied = weights_of(plain)
    tensors = {f"{WEIGHTS}{name}": value for name, value in weights.items()}
    bucket = None
    if layout.num_buckets > 1:
        bucket = buckets_of_all(data)
        tensors["bucket"] = pack_buckets(bucket, layout.num_buckets)
    features = {name: _dense_features(part) for name, part in node_parts(data).items()}
    sparse = [name for name, (_, is_sparse) in features.items() if is_sparse]
    fields = _fields(model, plain, data, layout, sparse_types=sparse)
    fields |= {"tied": tied} if tied else {}
    fields |= {"degree_edges": list(degree_edges)} if degree_edges else {}
    calls = constants or {}
    if isinstance(data, HeteroData):
        assert answers is not None
        fields["node_types"] = PackedTypes.of(model, data, answers).to_dict()
    else:
        x, _ = features[ONLY_TYPE]
        use, more = feature_use(x, layout, fields["bit_widths"], calls, exact=exact)
        fields |= {} if use is None else {"features": use.to_dict()}
        tensors |= more
    by_name = dict(quantizers(model))
    header = ModelHeader.parse(fields)
    for site in header.sites:
        node_type, of_site = header.types.of_site(site.name), None
        if bucket is not None and len(site.bit_widths) > 1:
            of_site = header.types.part(node_type, bucket)
        x = features.get(node_type, (None, False))[0]
        tensors |= _site_tensors(header, site, by_name[site.name], x, of_site)
    contents = ModelContents(fields, {name: value.contiguous() for name, value in tensors.items()})
    for (name, call), given in calls.items():
        contents.tensors[constant_name(name, call)] = contents.pack(name, given).data
    return contents


def _fields(
    model: nn.Module,
    plain: nn.Module,
    data: Graph,
    layout: FeatureLayout,
    *,
    sparse_types: Sequence[str],
) -> dict[str, Any]:
    """Return the header of a fake-quantized model, without provenance."""
    by_name = dict(quantizers(model))
    names = {site: str(Site(site.layer, site.component)) for site in layout.sizes}
    for name in sorted(set(by_name) ^ set(names.values())):
        raise CalibrationError(f"{name}: expected a layout of this model; calibrate() gives it")
    bits = {site: by_name[name].bit_widths[site.bucket or 0] for site, name in names.items()}
    inputs = {names[site]: None for site, size in layout.sizes.items() if size.content is not None}
    arguments: dict[str, list[tuple[str, str]]] = {}
    for path, argument, quantizer in layer_quantizers(model):
        arguments.setdefault(path, []).append((argument, quantizer.name))
    types = {name: one.node_type for name, one in site_quantizers(model)}
    known = architecture(plain)
    config = next(q.config for name, q in by_name.items() if name.endswith("/embedding"))
    return {
        "model": None if known is None else {"name": known[0], "arguments": known[1]},
        "model_fingerprint": model_fingerprint(plain),
        "edges": edges_fingerprint(data),
        "layout": layout.to_dict(),
        "bit_widths": BitWidths(bits).to_dict(),
        "quantizer": config.to_dict(),
        "arguments": arguments,
        "hops": {
            path: hop_ports(module)
            for path, module in model.named_modules()
            if HOPS in module._modules
        },
        "sparse_inputs": [
            name
            for name in inputs
            if types[name] in sparse_types
            and (by_name[name].is_identity or by_name[name].keeps_zero())
        ],
    }


def _dense_features(data: Any) -> tuple[Tensor | None, bool]:
    """Return the graph's features, if it has any, and whether products run on the non-zeros."""
    x = data.get("x")
    if not isinstance(x, Tensor):
        return None, False
    given = as_sparse_features(x)
    return (given.dense(), True) if isinstance(given, SparseFeatures) else (x, False)


def _site_tensors(
    header: ModelHeader,
    site: ModelSite,
    quantizer: FeatureQuantizer,
    x: Tensor | None,
    bucket: Tensor | None,
) -> dict[str, Tensor]:
    """Return the stored tensors of a site: the graph's features packed, and ranges."""
    table = None if site.is_identity else quantizer.table()
    ranges = None if table is None else (table.scale, table.zero_point)
    tensors: dict[str, Tensor] = {}
    lines: Tensor | slice | list[int] = site.stored_lines(bucket)
    if site.is_input:
        assert x is not None
        if x.dtype != torch.float32:
            raise ModelError(
                f"x: expected float32 features, got {str(x.dtype).removeprefix('torch.')}; give "
                f"the graph float32 ones, data.x = data.x.float()"
            )
        for number in site.sizes:
            part = input_part(x, bucket, number, site, ranges, quantizer.config.rounding)
            prefix = input_prefix(site, number)
            tensors |= {f"{prefix}{name}": tensor for name, tensor in part.tensors.items()}
        lines = header.range_lines(site)
        if not lines:
            return tensors
    if ranges is None:
        return tensors
    return tensors | {
        name: part[lines] for name, part in zip(range_names(site), ranges, strict=True)
    }
