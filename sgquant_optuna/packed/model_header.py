"""The header of a packed model: what its file says beside the tensors, each thing once.

===================== ========================================================================
``model``             name and arguments of a model of the paper, or null
``model_fingerprint`` class and hash of the architecture
``edges``             number and hash of the edges of the graph; missing without features
``layout``            number of nodes and of degree buckets, and the size of each site
``bit_widths``        bit width of each site
``quantizer``         settings of the quantizers
``arguments``         arguments of each layer that are quantized, the main one first, with sites
``hops``              calls of ``propagate`` between which hidden features are quantized, by layer
``sparse_inputs``     layers whose products with the graph's features run on the non-zeros alone
``features``          only where the graph's features are used otherwise: :mod:`.feature_use`
``degree_edges``      only where known: the degrees at which the degree buckets begin
``node_types``        only of a heterogeneous graph: :mod:`.packed_types`
``tied``              only where weights have two names: the name that stores each of the others
``provenance``        where the file comes from: content of the user
===================== ========================================================================

All else follows: widths and ranges of a layer from layout, widths and settings, and the store of
the graph's features from the accounting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from sgquant_optuna.attachment.hops import Port, hop_site
from sgquant_optuna.attachment.layer_arguments import ROOT
from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.graph.degree_edges import check_degree_edges
from sgquant_optuna.packed.checks import MAX_BUCKETS, check_count, check_widths
from sgquant_optuna.packed.feature_use import FeatureUse
from sgquant_optuna.packed.input_features import CODE_STORES
from sgquant_optuna.packed.packed_types import PackedTypes
from sgquant_optuna.quantization.input_stores import RowValue
from sgquant_optuna.quantization.layout import bits_for
from sgquant_optuna.quantization.memory import FeatureLayout, SiteSize, site_store
from sgquant_optuna.quantization.quantizer_config import Axis, QuantizerConfig
from sgquant_optuna.quantization.sites import FULL_PRECISION, BitWidths, Component, Site

_MOST_VALUES = 2**62


@dataclass(frozen=True)
class ModelSite:
    """A site of the model with all its degree buckets.

    Args:
        layer:
            Path of the layer in the model.
        component:
            ``"embedding"`` or ``"attention"``.
        bit_widths:
            Bit width of each degree bucket, 32 for one without nodes; one width where widths do
            not depend on the degree.
        sizes:
            Size of each degree bucket that has nodes.
        axis:
            Values that share a range.
        sparse:
            Whether products run on the non-zeros alone.
    """

    layer: str
    component: Component
    bit_widths: tuple[int, ...]
    sizes: Mapping[int, SiteSize]
    axis: Axis
    sparse: bool

    @property
    def name(self) -> str:
        """Readable name, for instance ``conv1/embedding``."""
        return str(Site(self.layer, self.component))

    @property
    def is_input(self) -> bool:
        """Whether the layer takes the graph's own features."""
        return any(size.content is not None for size in self.sizes.values())

    @property
    def is_identity(self) -> bool:
        """Whether every degree bucket keeps float32."""
        return all(width == FULL_PRECISION for width in self.bit_widths)

    @property
    def num_columns(self) -> int:
        """Number of features F, or of heads H."""
        return next(iter(self.sizes.values())).num_columns

    @property
    def num_ranges(self) -> int:
        """Number of ranges of all degree buckets."""
        return sum(size.num_ranges for size in self.sizes.values())

    def store(self, bucket: int) -> tuple[str, int]:
        """Return the store of the rows of a degree bucket, and its bytes."""
        site = Site(self.layer, self.component)
        return site_store(site, self.sizes[bucket], self.bit_widths[bucket])

    def count_bits(self, bucket: int) -> int:
        """Return the bits of the number of non-zeros of a row; 0 in a store without counts."""
        content = self.sizes[bucket].content
        if content is None or not self.store(bucket)[0].startswith("sparse"):
            return 0
        return bits_for(content.by_width[self.bit_widths[bucket]].max_row_nonzeros)

    def stored_lines(self, bucket: Tensor | None) -> Tensor | slice:
        """Select the ranges that are stored: those of rows that are quantized.

        Args:
            bucket:
                Degree bucket of each row, ``[N]``; ``None`` for one bucket.
        """
        quantized = torch.tensor(self.bit_widths) != FULL_PRECISION
        if self.axis != "row":
            return quantized
        return slice(None) if bucket is None else quantized[bucket.long()]


@dataclass(frozen=True)
class ModelHeader:
    """Checked header of a packed model, before anything is built of it.

    Args:
        layout:
            Size of each site.
        bit_widths:
            Bit width of each site.
        config:
            Settings of the quantizers.
        sites:
            Sites of the model, each with all its degree buckets.
        arguments:
            Name of the site of each argument, the main one first, by path of the layer.
        hops:
            Ports of the hidden features of each convolution that has some, by its path.
        features:
            Use of the graph's own features.
        tied:
            Name of the weights that are stored, for each other name of the same weights.
        degree_edges:
            Degrees at which the degree buckets begin, if the file tells them.
        has_graph:
            Whether the file holds the features of a graph.
        types:
            Node types of the graph, and of the sites.
    """

    layout: FeatureLayout
    bit_widths: BitWidths
    config: QuantizerConfig
    sites: tuple[ModelSite, ...]
    arguments: Mapping[str, Mapping[str, str]]
    hops: Mapping[str, tuple[Port, ...]]
    features: FeatureUse
    tied: Mapping[str, str]
    degree_edges: tuple[int, ...] | None
    has_graph: bool
    types: PackedTypes

    def range_lines(self, site: ModelSite) -> list[int]:
        """Return the degree buckets whose ranges lie beside the features that a site takes.

        They are those of all rows that are quantized, where the file holds no features, and
        otherwise of those that are stored as values: no code of them needs a range, but those of
        another graph do.
        """
        return [
            number
            for number, width in enumerate(site.bit_widths)
            if width != FULL_PRECISION
            and site.axis != "row"
            and not (self.has_graph and site.store(number)[0] in CODE_STORES)
        ]

    def is_own(self, path: str, argument: str) -> bool:
        """Whether the site of an argument is named after it, and stores what it takes."""
        if self.types.is_hetero:  # relations share what the first of them stores
            return False
        is_main = argument == next(iter(self.arguments[path]))
        layer = path or ROOT
        own = Site(layer if is_main else f"{layer}.{argument}", "embedding")
        return self.arguments[path][argument] == str(own)

    def hop_site(self, path: str) -> str:
        """Return the name of the site between the hops of a convolution."""
        return hop_site(path or ROOT)

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> ModelHeader:
        """Read the header, and check every field that a packed model reads.

        Raises:
            PackingError:
                If a field is missing, of another type, or contradicts another.
        """
        has_graph = "edges" in fields
        if has_graph:
            edges = _mapping(fields, "edges")
            check_count(edges.get("edges"), "edges of the graph")
            _check_text(edges, "hash", "edges of the graph")
        for name in ("class", "hash"):
            _check_text(_mapping(fields, "model_fingerprint"), name, "model fingerprint")
        try:
            config = QuantizerConfig(**_mapping(fields, "quantizer"))
            _check_layout(_mapping(fields, "layout"))
            layout = FeatureLayout.from_dict(fields["layout"])
            bits = BitWidths.from_dict(_mapping(fields, "bit_widths"))
        except LookupError as error:
            raise PackingError(f"packed model: expected a field {error}, got none") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise PackingError(f"packed model: expected other fields: {error}") from error
        if config.axis == "row" and not has_graph:
            raise PackingError("quantizer: expected ranges of any graph, got axis='row'")
        if set(bits) != set(layout.sizes):
            raise PackingError("bit widths: expected one for each site of the layout")
        sites = _sites(layout, bits, config, fields.get("sparse_inputs"))
        types = PackedTypes.parse(fields.get("node_types"), layout.num_nodes)
        inputs = _check_inputs(sites, types)
        features = FeatureUse(None)
        if not types.is_hetero:
            features = _features(fields.get("features"), sites, inputs, layout.num_nodes)
        names = {site.name for site in sites if site.component == "embedding"}
        arguments, hops = _arguments(fields, names), _hops(fields)
        degrees = _degree_edges(fields.get("degree_edges"), layout.num_buckets)
        more = _tied(fields), degrees, has_graph, types
        header = cls(layout, bits, config, sites, arguments, hops, features, *more)
        _check_reached(header, names)
        return header


def _sites(
    layout: FeatureLayout, bits: BitWidths, config: QuantizerConfig, sparse_inputs: object
) -> tuple[ModelSite, ...]:
    """Join the sites of all degree buckets of a layer and component."""
    if not isinstance(sparse_inputs, list):
        raise PackingError(f"sparse_inputs: expected a list of sites, got {sparse_inputs!r}")
    grouped: dict[Site, list[Site]] = {}
    for site in layout.sizes:
        grouped.setdefault(Site(site.layer, site.component), []).append(site)
    sites = []
    for whole, parts in grouped.items():
        _check_parts(whole, parts, layout)
        widths = [FULL_PRECISION] * (1 if parts == [whole] else layout.num_buckets)
        for part in parts:
            widths[part.bucket or 0] = bits[part]
        sites.append(
            ModelSite(
                whole.layer,
                whole.component,
                tuple(widths),
                {part.bucket or 0: layout.sizes[part] for part in parts},
                "tensor" if whole.component == "attention" else config.axis,
                str(whole) in sparse_inputs,
            )
        )
    inputs = [site.name for site in sites if site.is_input]
    for name in sparse_inputs:
        if name not in inputs:
            raise PackingError(f"sparse_inputs: expected some of {inputs}, got {name!r}")
    return tuple(sites)


def _check_parts(whole: Site, parts: list[Site], layout: FeatureLayout) -> None:
    """Check the sites of one layer and component: without degree bucket, or one for each."""
    sizes = [layout.sizes[part] for part in parts]
    buckets = {part.bucket for part in parts}
    if parts != [whole] and not (
        buckets <= set(range(layout.num_buckets))
        and layout.num_buckets > 1
        and whole.component == "embedding"
    ):
        raise PackingError(
            f"{whole}: expected one site or one for each of {layout.num_buckets} degree buckets, "
            f"got {', '.join(map(str, parts))}"
        )
    if len({size.num_columns for size in sizes}) != 1:
        raise PackingError(f"{whole}: expected one number of columns in all degree buckets")
    has_content = {size.content is not None for size in sizes}
    if len(has_content) != 1 or (whole.component == "attention" and True in has_content):
        raise PackingError(f"{whole}: expected a content for all degree buckets of an input alone")


def _check_inputs(sites: tuple[ModelSite, ...], types: PackedTypes) -> list[ModelSite]:
    """Return the sites of the graph's features; check that all have those of all nodes."""
    inputs = [site for site in sites if site.is_input]
    for site in inputs:
        check_count(site.num_columns, f"features of {site.name}", low=1)
        node_type = types.of_site(site.name)
        expected = types.columns.get(node_type, inputs[0].num_columns)
        if site.num_columns != expected or node_type not in types.counts:
            raise PackingError(
                f"{site.name}: expected {expected} features as {node_type or inputs[0].name}, "
                f"got {site.num_columns}"
            )
        num_nodes = types.counts[node_type]
        num_rows = sum(size.num_rows for size in site.sizes.values())
        if num_rows != num_nodes:
            raise PackingError(f"{site.name}: expected {num_nodes} rows in all, got {num_rows}")
    return inputs


def _features(
    value: object, sites: tuple[ModelSite, ...], inputs: list[ModelSite], num_nodes: int
) -> FeatureUse:
    """Return the use of the graph's features, which must fit the sites."""
    shape = (num_nodes, inputs[0].num_columns) if inputs else None
    if value is None:
        if shape is None:
            raise PackingError("layout: expected a site that takes the graph's features")
        return FeatureUse(shape)
    use = FeatureUse.parse(value, num_nodes)
    if shape is not None and (use.shape, use.dtype) != (shape, "float32"):
        raise PackingError(
            f"features: expected float32 {list(shape)} as {inputs[0].name}, got {use.dtype} "
            f"{use.shape!r}"
        )
    if use.exact_site is not None and use.exact_site not in [site.name for site in inputs]:
        raise PackingError(f"features: expected exact ones of an input, got {use.exact_site!r}")
    hidden = [s.name for s in sites if s.component == "embedding" and not s.is_input]
    for name in use.constant:
        if name not in hidden:
            raise PackingError(f"features: expected constants of {hidden}, got {name!r}")
    return use


def _tied(fields: Mapping[str, Any]) -> dict[str, str]:
    tied = fields.get("tied", {})
    if not isinstance(tied, dict) or not all(isinstance(name, str) for name in tied.values()):
        raise PackingError(f"tied: expected names of weights, got {tied!r}")
    return tied


def _degree_edges(value: object, num_buckets: int) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        if not isinstance(value, list) or any(type(edge) is not int for edge in value):
            raise ValueError(f"degree edges: expected a list of degrees, got {value!r}")
        edges = check_degree_edges([check_count(edge, "degree edge") for edge in value])
    except ValueError as error:
        raise PackingError(str(error)) from None
    if len(edges) != num_buckets - 1:
        raise PackingError(f"degree edges: expected {num_buckets - 1}, got {len(edges)}")
    return edges


def _arguments(fields: Mapping[str, Any], names: set[str]) -> dict[str, dict[str, str]]:
    arguments: dict[str, dict[str, str]] = {}
    for path, pairs in _mapping(fields, "arguments").items():
        given = _pairs(pairs, f"arguments of {path}", (str, str))
        for argument, name in given:
            if name not in names:
                raise PackingError(
                    f"arguments of {path}: expected a site for {argument}, got {name}"
                )
        arguments[path] = dict(given)
    return arguments


def _hops(fields: Mapping[str, Any]) -> dict[str, tuple[Port, ...]]:
    return {
        path: tuple(
            (check_count(call, f"call of a hop of {path}"), argument)
            for call, argument in _pairs(ports, f"hops of {path}", (int, str))
        )
        for path, ports in _mapping(fields, "hops").items()
    }


def _pairs(value: object, where: str, types: tuple[type, type]) -> list[tuple[Any, Any]]:
    """Return a list of pairs of these types; JSON keeps the order of lists alone."""
    if not isinstance(value, list):
        raise PackingError(f"{where}: expected a list, got {value!r}")
    for pair in value:
        if not isinstance(pair, list | tuple) or tuple(map(type, pair)) != types:
            expected = " and ".join(one.__name__ for one in types)
            raise PackingError(f"{where}: expected pairs of {expected}, got {pair!r}")
    return [(one, other) for one, other in value]


def _check_reached(header: ModelHeader, names: set[str]) -> None:
    """Check that an argument or hops store the features of each site, and of one row a range."""
    reached = {header.hop_site(path) for path in header.hops}
    for path, arguments in header.arguments.items():
        reached |= {
            name
            for one, name in arguments.items()
            if header.types.is_hetero or header.is_own(path, one)
        }
    for name in sorted(names ^ reached):
        raise PackingError(f"{name}: expected a site of the layout that one argument or hop feeds")
    for site in header.sites:
        num_nodes = header.types.num_rows(site.name)
        if site.axis == "row" and len(site.bit_widths) > 1 and site.num_ranges != num_nodes:
            raise PackingError(
                f"{site.name}: expected a row for each of {num_nodes} nodes, got "
                f"{site.num_ranges}; use axis='tensor' or 'column' where widths depend on the "
                f"degree, or leave the layer out with layers="
            )


def _check_layout(layout: Mapping[str, Any]) -> None:
    """Check the type and the size of every number of a layout."""
    check_count(layout["num_nodes"], "nodes")
    check_count(layout["num_buckets"], "degree buckets", low=1, high=MAX_BUCKETS)
    for name, size in layout["sizes"].items():
        for part in ("num_rows", "num_columns", "num_ranges"):
            check_count(size[part], f"{part} of {name}")
        content = size["content"]
        if content is None:
            continue
        for one in content["by_width"].values():
            check_count(one["num_nonzeros"], f"non-zeros of {name}", high=_MOST_VALUES)
            check_count(one["max_row_nonzeros"], f"non-zeros of a row of {name}")
            if one["num_values"] is not None:
                check_count(one["num_values"], f"values of {name}")
            if one["gap_bits"] is not None:
                check_count(one["gap_bits"], f"bits of the gaps of {name}", high=_MOST_VALUES)
        if content["lossless"]:
            check_widths(content["lossless"], f"lossless widths of {name}")
        if content.get("row_value") not in (None, *get_args(RowValue)):
            raise PackingError(
                f"row_value of {name}: expected null or one of {get_args(RowValue)}, got "
                f"{content['row_value']!r}"
            )


def _mapping(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    if not isinstance(value, dict):
        raise PackingError(f"{name}: expected an object, got {value!r}")
    return value


def _check_text(fields: Mapping[str, Any], name: str, where: str) -> None:
    value = fields.get(name)
    if not isinstance(value, str):
        raise PackingError(f"{where}: expected a text as {name}, got {value!r}")
