"""The contents of a packed model: taken from a fake-quantized one, or read from a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from sgquant_optuna.attachment.hops import HOPS, hop_ports
from sgquant_optuna.attachment.layer_inputs import layer_quantizers
from sgquant_optuna.attachment.model_copies import copy_model
from sgquant_optuna.attachment.quantized_model import detach, quantizers
from sgquant_optuna.exceptions import CalibrationError, GraphError, ModelError, PackingError
from sgquant_optuna.graph.fingerprint import edges_fingerprint, model_fingerprint
from sgquant_optuna.graph.paper_models import MODELS, architecture
from sgquant_optuna.graph.sparse_features import SparseFeatures, as_sparse_features
from sgquant_optuna.packed.checks import (
    check_buckets,
    check_count,
    check_finite,
    check_ranges,
    check_tensor,
    top_codes,
)
from sgquant_optuna.packed.container import read_container
from sgquant_optuna.packed.input_features import InputPart, PackedInput
from sgquant_optuna.packed.integers import pack_buckets, read_buckets
from sgquant_optuna.packed.model_header import ModelHeader, ModelSite
from sgquant_optuna.packed.packed_tensor import InputPlaceholder
from sgquant_optuna.quantization.memory import FeatureLayout
from sgquant_optuna.quantization.quantizers import FeatureQuantizer
from sgquant_optuna.quantization.sites import FULL_PRECISION, BitWidths, Site

KIND = "packed_model"
_WEIGHTS = "weights."
_X = "x"


class ModelContents:
    """Header and tensors of a packed model, checked against one another as they are used.

    Tensors are named ``weights.*``, ``bucket``, ``scale.SITE`` and ``zero_point.SITE``, and
    ``input.SITE.BUCKET.*`` for the graph's own features, or ``x`` where no site holds these.

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
        has_input = self.header.num_features is not None
        if not has_input and _X not in self.tensors:
            raise PackingError("layout: expected a site that takes the graph's features")
        known, prefixes = {"bucket"} | (set() if has_input else {_X}), [_WEIGHTS]
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
    def of(cls, model: nn.Module, data: Data, layout: FeatureLayout) -> ModelContents:
        """Take a fake-quantized model apart.

        Args:
            model:
                Model with calibrated quantizers and chosen widths.
            data:
                Graph of the calibration, with ``degree_bucket`` if there are several.
            layout:
                Result of ``calibrate``.

        Raises:
            CalibrationError:
                If the layout is not that of the model.
            GraphError:
                If the graph is not that of the layout.
            ModelError:
                If no quantized layer takes the graph's features.
        """
        if data.num_nodes != layout.num_nodes:
            raise GraphError(f"graph: expected {layout.num_nodes} nodes, got {data.num_nodes}")
        plain = detach(copy_model(model))
        tensors = {f"{_WEIGHTS}{name}": value for name, value in plain.state_dict().items()}
        bucket = None
        if layout.num_buckets > 1:
            if "degree_bucket" not in data:
                raise GraphError("column degree_bucket: expected one for each node, got none")
            bucket = data.degree_bucket
            tensors["bucket"] = pack_buckets(bucket, layout.num_buckets)
        if not isinstance(data.x, Tensor):
            raise GraphError("column x: expected the graph's features, got none")
        given = as_sparse_features(data.x)
        fields = _fields(model, plain, data, layout, is_sparse=isinstance(given, SparseFeatures))
        x = given.dense() if isinstance(given, SparseFeatures) else given
        by_name = dict(quantizers(model))
        header = ModelHeader.parse(fields)
        if header.num_features is None:
            tensors[_X] = x
        for site in header.sites:
            of_site = bucket if len(site.bit_widths) > 1 else None
            tensors |= _site_tensors(site, by_name[site.name], x, of_site)
        return cls(fields, {name: tensor.contiguous() for name, tensor in tensors.items()})

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

    @property
    def x(self) -> Tensor:
        """The graph's features ``[N, F]`` that the model is called with.

        A placeholder where sites hold them. Otherwise no layer takes them as they are, or one does
        so in several calls, and they are stored as float32 beside the sites.

        Raises:
            PackingError:
                If they do not fit.
        """
        num_nodes, num_features = self.header.layout.num_nodes, self.header.num_features
        if num_features is not None:
            return InputPlaceholder((num_nodes, num_features))
        x = self.tensors[_X]
        check_tensor(x, _X, torch.float32, {(num_nodes, x.shape[-1] if x.dim() else 0)})
        check_finite(x, _X)
        return x

    def bucket_of(self, site: ModelSite) -> Tensor | None:
        """Return the degree bucket of each row of a site, ``[N]``; ``None`` where there is one."""
        return self.bucket if len(site.bit_widths) > 1 else None

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
            model = _copied(model)
        elif known is not None:
            model = _paper_model(known, fingerprint, weights)
        else:
            raise ModelError(
                f"packed model: expected an instance of {fingerprint['class']}, got none; give "
                f"the model whose weights the file holds, as model="
            )
        _check_architecture(model, fingerprint)
        # A buffer of another model may be a mask of infinities.
        parameters = [name for name, _ in model.named_parameters()]
        _check_weights(weights, model, weights if known is not None else parameters)
        try:
            model.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise PackingError("packed model: its weights do not fit its architecture") from error
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
        scale, zero_point = self.stored_ranges(site)
        lines = site.num_ranges if site.axis == "row" else len(site.bit_widths)
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
    model: nn.Module, plain: nn.Module, data: Data, layout: FeatureLayout, *, is_sparse: bool
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
            if is_sparse and (by_name[name].is_identity or by_name[name].keeps_zero())
        ],
    }


def _site_tensors(
    site: ModelSite, quantizer: FeatureQuantizer, x: Tensor, bucket: Tensor | None
) -> dict[str, Tensor]:
    """Return the stored tensors of a site: the graph's features packed, or ranges."""
    if site.is_input:
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


def _input_prefix(site: ModelSite, number: int) -> str:
    return f"input.{site.name}.{number}."


def _copied(model: nn.Module) -> nn.Module:
    """Copy the user's model, and tell what fails in its class from what is wrong with the file."""
    try:
        copied = copy_model(model)
        model_fingerprint(copied)
    except Exception as error:  # whatever a class may raise
        raise ModelError(
            f"packed model: {type(model).__name__} cannot be copied and described "
            f"({type(error).__name__}: {error})"
        ) from error
    return copied


def _paper_model(
    known: Any, fingerprint: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> nn.Module:
    """Build a model of the paper, but not one that the weights could not be of."""
    if not isinstance(known, dict) or known.get("name") not in MODELS:
        raise PackingError(f"model: expected one of {', '.join(MODELS)}, got {known!r}")
    arguments = known.get("arguments")
    if not isinstance(arguments, dict):
        raise PackingError(f"arguments of the model: expected an object, got {arguments!r}")
    num_weights = sum(value.numel() for value in weights.values())
    for name, value in arguments.items():
        if name == "dropout":
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise PackingError(f"dropout of the model: expected 0 to 1, got {value!r}")
            continue
        most = len(weights) if name == "num_layers" else num_weights
        check_count(value, f"{name} of the model", low=1, high=most)
    build = MODELS[known["name"]].build
    try:
        with torch.random.fork_rng(devices=[]):
            with torch.device("meta"):  # sizes alone, which may be absurd
                _check_architecture(build(**arguments), fingerprint)
            return build(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PackingError(f"arguments of the model: {error}") from error


def _check_architecture(model: nn.Module, fingerprint: Mapping[str, Any]) -> None:
    found = model_fingerprint(model)
    if found != fingerprint:
        raise ModelError(
            f"packed model: expected the architecture that was packed ({fingerprint['class']}), "
            f"got a {found['class']} of other layers or sizes"
        )


def _check_weights(
    weights: Mapping[str, Tensor], model: nn.Module, finite: Collection[str]
) -> None:
    """Check types and values of the weights; loading them checks names and shapes.

    Args:
        weights:
            Weights of the file, by name.
        model:
            Model that takes them.
        finite:
            Names of those that must be finite.
    """
    state = model.state_dict()
    for name, value in weights.items():
        if name in state and value.dtype != state[name].dtype:
            raise PackingError(f"{name}: expected {state[name].dtype}, got {value.dtype}")
        if name in finite:
            check_finite(value, name)
