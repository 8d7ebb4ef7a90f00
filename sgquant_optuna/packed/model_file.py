"""The contents of a packed model: taken from a fake-quantized one, or read from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from sgquant_optuna.attachment.hops import HOPS, hop_ports
from sgquant_optuna.attachment.layer_inputs import layer_quantizers
from sgquant_optuna.attachment.quantized_model import detach, quantizers, site_quantizers
from sgquant_optuna.exceptions import CalibrationError, GraphError, ModelError, PackingError
from sgquant_optuna.graph.fingerprint import edges_fingerprint, model_fingerprint
from sgquant_optuna.graph.model_copies import copy_model
from sgquant_optuna.graph.node_types import ONLY_TYPE, Graph, node_parts
from sgquant_optuna.graph.paper_models import architecture
from sgquant_optuna.graph.sparse_features import SparseFeatures, as_sparse_features
from sgquant_optuna.packed.checks import check_buckets, check_ranges, top_codes
from sgquant_optuna.packed.container import read_container
from sgquant_optuna.packed.feature_use import EXACT, feature_use
from sgquant_optuna.packed.input_features import InputPart
from sgquant_optuna.packed.integers import pack_buckets, read_buckets
from sgquant_optuna.packed.model_header import ModelHeader, ModelSite
from sgquant_optuna.packed.model_weights import load_weights, paper_model, weights_of, with_tied
from sgquant_optuna.packed.packed_features import PackedFeatures, check_full_rows
from sgquant_optuna.packed.packed_input import PackedInput
from sgquant_optuna.packed.packed_types import PackedTypes, buckets_of_all
from sgquant_optuna.quantization.memory import FeatureLayout
from sgquant_optuna.quantization.quantizers import FeatureQuantizer
from sgquant_optuna.quantization.sites import FULL_PRECISION, BitWidths, Site

KIND = "packed_model"
_WEIGHTS = "weights."


class ModelContents:
    """Header and tensors of a packed model, checked against one another as they are used.

    Tensors are named ``weights.*``, ``bucket``, ``scale.SITE`` and ``zero_point.SITE``, and
    ``input.SITE.BUCKET.*``, ``constant.SITE.CALL`` and ``exact.*`` for the graph's own features.

    Args:
        fields:
            Header, as :mod:`.model_header` describes it.
        tensors:
            Tensors by name.

    Raises:
        PackingError:
            If the header lacks a field or contradicts itself, or no site takes a tensor.
    """

    def __init__(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.fields, self.tensors = dict(fields), dict(tensors)
        self.header = ModelHeader.parse(fields)
        use = self.header.features
        known, prefixes = {"bucket"}, [_WEIGHTS]
        known |= {_constant(name, call) for name, calls in use.constant.items() for call in calls}
        if use.exact is not None and use.exact_site is None:
            prefixes.append(EXACT)
        for site in self.header.sites:
            if site.is_input:
                prefixes += [_input_prefix(site, number) for number in site.sizes]
            elif not site.is_identity:
                known |= set(_range_names(site))
        for name in sorted(self.tensors):
            if name not in known and not name.startswith(tuple(prefixes)):
                raise PackingError(f"packed model: expected no tensor {name}")

    @classmethod
    def read(cls, path: str | Path, *, verify: bool = True) -> ModelContents:
        """Read a file.

        Args:
            path:
                File of a packed model.
            verify:
                Whether to compare the checksum.

        Raises:
            PackingError:
                If the file is cut, altered, of another kind, or not ours.
        """
        return cls(*read_container(path, KIND, verify=verify))

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: nn.Module,
        data: Graph,
        layout: FeatureLayout,
        *,
        answers: str | None = None,
        constants: Mapping[tuple[str, int], Tensor] | None = None,
        exact: bool = False,
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
        tensors = {f"{_WEIGHTS}{name}": value for name, value in weights.items()}
        bucket = None
        if layout.num_buckets > 1:
            bucket = buckets_of_all(data)
            tensors["bucket"] = pack_buckets(bucket, layout.num_buckets)
        features = {name: _dense_features(part) for name, part in node_parts(data).items()}
        sparse = [name for name, (_, is_sparse) in features.items() if is_sparse]
        fields = _fields(model, plain, data, layout, sparse_types=sparse)
        fields |= {"tied": tied} if tied else {}
        calls = constants or {}
        if isinstance(data, HeteroData):
            assert answers is not None
            fields["node_types"] = PackedTypes.of(model, data, answers).to_dict()
        else:
            x, _ = features[ONLY_TYPE]
            use, more = feature_use(x, layout, fields["bit_widths"], calls, exact=exact)
            fields |= {} if use is None else {"features": use.to_dict()}
            tensors |= more
        by_name, header = dict(quantizers(model)), ModelHeader.parse(fields)
        for site in header.sites:
            node_type, of_site = header.types.of_site(site.name), None
            if bucket is not None and len(site.bit_widths) > 1:
                of_site = header.types.part(node_type, bucket)
            x = features.get(node_type, (None, False))[0]
            tensors |= _site_tensors(site, by_name[site.name], x, of_site)
        contents = cls(fields, {name: value.contiguous() for name, value in tensors.items()})
        for (name, call), given in calls.items():
            contents.tensors[_constant(name, call)] = contents.pack(name, given).data
        return contents

    def pack(self, name: str, x: Tensor) -> PackedFeatures:
        """Pack features that a layer takes, ``[N, F]`` float32, as its site says."""
        site = next(site for site in self.header.sites if site.name == name)
        return PackedFeatures.from_dense(
            x,
            self.bucket_of(site),
            site.bit_widths,
            *self.ranges(site),
            rounding=self.header.config.rounding,
            ranges_by_row=site.axis == "row",
        )

    def constant_of(self, site: ModelSite, call: int) -> PackedFeatures:
        """Return the packed features that a call of a layer takes each time.

        Raises:
            PackingError:
                If they are missing or do not fit.
        """
        tensor = _constant(site.name, call)
        if tensor not in self.tensors:
            raise PackingError(f"packed model: expected a tensor {tensor}, got none")
        bucket = self.bucket_of(site)
        if bucket is None:
            bucket = torch.zeros(self.header.layout.num_nodes, dtype=torch.uint8)
        scale, zero_point = self.ranges(site)
        packed = PackedFeatures(
            self.tensors[tensor],
            bucket,
            site.bit_widths,
            scale,
            zero_point,
            site.num_columns,
            site.axis == "row",
        )
        check_full_rows(packed)
        return packed

    def exact_features(self) -> PackedInput | None:
        """Return the exact features, if the model uses them outside of its quantized layers.

        Raises:
            PackingError:
                If their tensors do not fit.
        """
        use = self.header.features
        if use.exact is None:
            return None
        if use.exact_site is not None:
            sites = [site for site in self.header.sites if site.name == use.exact_site]
            return self.input_of(sites[0])
        sparse = any(site.sparse for site in self.header.sites)
        return use.exact_input(self._named(EXACT), sparse=sparse)

    @cached_property
    def bucket(self) -> Tensor | None:
        """Degree bucket of each node, ``[N]`` uint8, or ``None`` where there is one.

        Raises:
            PackingError:
                If the buckets are missing, too many, or out of range.
        """
        num_buckets = self.header.layout.num_buckets
        if (num_buckets > 1) != ("bucket" in self.tensors):
            raise PackingError(
                f"degree buckets: expected those of {num_buckets}, the file has "
                f"{'some' if 'bucket' in self.tensors else 'none'}"
            )
        if num_buckets == 1:
            return None
        bucket = read_buckets(self.tensors["bucket"], self.header.layout.num_nodes, num_buckets)
        check_buckets(bucket, num_buckets)
        return bucket

    def bucket_of(self, site: ModelSite) -> Tensor | None:
        """Return the degree bucket of each row of a site, ``[N]``; ``None`` where there is one."""
        types, bucket = self.header.types, self.bucket if len(site.bit_widths) > 1 else None
        return None if bucket is None else types.part(types.of_site(site.name), bucket)

    def plain_model(self, model: nn.Module | None = None) -> nn.Module:
        """Return the float32 model with the weights of the packed one.

        Args:
            model:
                Instance of the architecture; may be left out for models of the paper.

        Raises:
            ModelError:
                If the model is of another architecture, or is needed and missing.
            PackingError:
                If the weights do not fit.
        """
        known, fingerprint = self.fields.get("model"), self.fields["model_fingerprint"]
        weights = self._named(_WEIGHTS)
        if model is not None:
            model = load_weights(model, weights, self.header.tied, fingerprint)
        elif known is not None:
            every = with_tied(weights, self.header.tied)
            model = paper_model(known, every, fingerprint)
        else:
            raise ModelError(
                f"packed model: expected an instance of {fingerprint['class']}, got none; give "
                f"the model whose weights the file holds, as model="
            )
        return model.requires_grad_(False)

    def input_of(self, site: ModelSite) -> PackedInput:
        """Return the graph's features as one site holds them.

        Raises:
            PackingError:
                If their tensors do not fit, or take other bytes than the accounting says.
        """
        parts: list[InputPart | None] = [None] * len(site.bit_widths)
        for number, size in site.sizes.items():
            store, expected = site.store(number)
            part = InputPart(
                store,
                site.bit_widths[number],
                (size.num_rows, size.num_columns),
                self._named(_input_prefix(site, number)),
                site.count_bits(number),
            )
            if part.nbytes != expected:
                raise PackingError(
                    f"{site.name}, degree bucket {number}: the accounting says {expected} bytes "
                    f"of {store}, the file has {part.nbytes}"
                )
            parts[number] = part
        return PackedInput(parts, self.bucket_of(site), sparse=site.sparse)

    def stored_ranges(self, site: ModelSite) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of a site, one line for each that is used.

        Raises:
            PackingError:
                If they are missing or cannot be ranges of the site.
        """
        names = _range_names(site)
        for name in names:
            if name not in self.tensors:
                raise PackingError(f"packed model: expected a tensor {name}, got none")
        scale, zero_point = (self.tensors[name] for name in names)
        bucket, tops = self.bucket_of(site), top_codes(site.bit_widths)
        if site.axis == "row":
            tops = tops.expand(site.num_ranges, 1) if bucket is None else tops[bucket.long()]
        tops = tops[site.stored_lines(bucket)]
        columns = site.num_columns if site.axis == "column" else 1
        check_ranges(scale, zero_point, site.name, {(len(tops), columns)}, tops)
        return scale, zero_point

    def ranges(self, site: ModelSite) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of all degree buckets or rows of a site.

        Returns:
            Scale and zero point, ``[B, 1]``, ``[B, F]`` or ``[N, 1]`` each; where nothing is
            quantized, both are 1.

        Raises:
            PackingError:
                If they are missing or cannot be ranges of the site.
        """
        lines = site.num_ranges if site.axis == "row" else len(site.bit_widths)
        if site.is_identity:
            return torch.ones(lines, 1), torch.ones(lines, 1)
        scale, zero_point = self.stored_ranges(site)
        stored = site.stored_lines(self.bucket_of(site))
        spread = scale.new_ones(2, lines, scale.shape[1])
        spread[0, stored], spread[1, stored] = scale, zero_point
        return spread[0], spread[1]

    def _named(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with a prefix, without it."""
        return {
            name[len(prefix) :]: tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


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
    site: ModelSite, quantizer: FeatureQuantizer, x: Tensor | None, bucket: Tensor | None
) -> dict[str, Tensor]:
    """Return the stored tensors of a site: the graph's features packed, or ranges."""
    if site.is_input:
        assert x is not None
        if x.dtype != torch.float32:
            raise ModelError(
                f"x: expected float32 features, got {str(x.dtype).removeprefix('torch.')}; give "
                f"the graph float32 ones, data.x = data.x.float()"
            )
        return {
            f"{_input_prefix(site, number)}{name}": tensor
            for number in site.sizes
            for name, tensor in _input_part(x, bucket, number, site, quantizer).tensors.items()
        }
    if site.is_identity:
        return {}
    table, lines = quantizer.table(), site.stored_lines(bucket)
    ranges = table.scale[lines], table.zero_point[lines]
    return dict(zip(_range_names(site), ranges, strict=True))


def _input_part(
    x: Tensor, bucket: Tensor | None, number: int, site: ModelSite, quantizer: FeatureQuantizer
) -> InputPart:
    """Pack the rows of one degree bucket of the graph's features, ``[N, F]``."""
    rows = x if bucket is None else x[bucket == number]
    width = site.bit_widths[number]
    scale = zero_point = x.new_ones(1, 1)
    if width != FULL_PRECISION:
        table = quantizer.table()
        line: Tensor | slice = slice(number, number + 1)
        if site.axis == "row":
            line = slice(None) if bucket is None else bucket == number
        scale, zero_point = table.scale[line], table.zero_point[line]
    store, expected = site.store(number)
    part = InputPart.from_dense(rows, store, width, scale, zero_point, quantizer.config.rounding)
    if (part.nbytes, part.count_bits) != (expected, site.count_bits(number)):
        raise GraphError(
            f"{site.name}, degree bucket {number}: the accounting says {expected} bytes, the "
            f"graph takes {part.nbytes}; give the graph and the layout of one calibration"
        )
    return part


def _range_names(site: ModelSite) -> tuple[str, str]:
    return f"scale.{site.name}", f"zero_point.{site.name}"


def _constant(name: str, call: int) -> str:
    return f"constant.{name}.{call}"


def _input_prefix(site: ModelSite, number: int) -> str:
    return f"input.{site.name}.{number}."
