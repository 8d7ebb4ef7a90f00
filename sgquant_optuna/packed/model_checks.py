"""Whether the header of a packed model agrees with itself, before anything is built of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed.checks import (
    MAX_BUCKETS,
    check_count,
    check_flag,
    check_ranges,
    check_shape,
    check_widths,
    top_codes,
)
from sgquant_optuna.packed.model_contents import stored_lines
from sgquant_optuna.quantization.memory import FeatureLayout, SiteSize
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.sites import BitWidths, Site

_MOST_VALUES = 2**62


def check_header(fields: Mapping[str, Any]) -> None:
    """Check every field that a packed model reads, and that they agree.

    Args:
        fields:
            Fields of the packed model.

    Raises:
        PackingError:
            If one is missing, of another type, or contradicts another.
    """
    edges = _mapping(fields, "edges")
    check_count(edges.get("edges"), "edges of the graph")
    _text(edges, "hash", "edges of the graph")
    _text(_mapping(fields, "model_fingerprint"), "class", "model fingerprint")
    _text(fields["model_fingerprint"], "hash", "model fingerprint")
    num_features = check_count(fields.get("num_features"), "num_features", low=1)
    try:
        config = QuantizerConfig(**_mapping(fields, "quantizer"))
        _check_layout(_mapping(fields, "layout"))
        layout = FeatureLayout.from_dict(fields["layout"])
        bits = BitWidths.from_dict(_mapping(fields, "bit_widths"))
    except LookupError as error:
        raise PackingError(f"packed model: expected a field {error}, got none") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise PackingError(f"packed model: expected other fields: {error}") from error
    if set(bits) != set(layout.sizes):
        raise PackingError("bit widths: expected one for each site of the layout")
    sites = fields.get("sites")
    if not isinstance(sites, list) or not all(isinstance(site, dict) for site in sites):
        raise PackingError(f"sites: expected a list, got {sites!r}")
    left = dict(layout.sizes)
    for site in sites:
        of_site = _sites_of(site, left)
        widths = _check_site(site, of_site, layout, config)
        for known, size in of_site.items():
            del left[known]
            if bits[known] != widths[known.bucket or 0]:
                raise PackingError(
                    f"{known}: expected one bit width, got {bits[known]} and "
                    f"{widths[known.bucket or 0]}"
                )
            if site["input"] is not None and size.num_columns != num_features:
                raise PackingError(
                    f"{known}: expected {num_features} features, got {size.num_columns}"
                )
    if left:
        raise PackingError(f"sites: expected {', '.join(map(str, left))} among them")
    if not any(site["input"] for site in sites):
        raise PackingError("sites: expected one that takes the graph's features")


def site_ranges(
    site: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    bucket: Tensor | None,
    layout: FeatureLayout,
) -> tuple[Tensor, Tensor]:
    """Return the stored ranges of a quantized site, one line for each that is used.

    Args:
        site:
            Its fields.
        tensors:
            Tensors of the packed model.
        bucket:
            Degree bucket of each node, ``[N]``; ``None`` for one bucket.
        layout:
            Sizes of all sites.

    Raises:
        PackingError:
            If they are missing or cannot be ranges of the site.
    """
    name, widths, axis = site["name"], site["bit_widths"], site["axis"]
    scale, zero_point = (
        stored_tensor(tensors, f"{part}.{name}") for part in ("scale", "zero_point")
    )
    tops = top_codes(widths)
    if axis == "row":
        tops = tops.expand(layout.num_nodes, 1) if bucket is None else tops[bucket.long()]
    tops = tops[stored_lines(widths, axis, bucket)]
    columns = next(iter(_sites_of(site, layout.sizes).values())).num_columns
    columns = columns if axis == "column" else 1
    check_ranges(scale, zero_point, name, {(len(tops), columns)}, tops)
    return scale, zero_point


def stored_tensor(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a tensor of a packed model.

    Raises:
        PackingError:
            If it is missing.
    """
    if name not in tensors:
        raise PackingError(f"packed model: expected a tensor {name}, got none")
    return tensors[name]


def check_weights(
    weights: Mapping[str, Tensor], state: Mapping[str, Tensor], finite: set[str]
) -> None:
    """Check the types and the values of the weights; loading them checks names and shapes.

    Args:
        weights:
            What the file holds, by name.
        state:
            What the model holds.
        finite:
            Names of those that must be finite.

    Raises:
        PackingError:
            If one is of another type, or is NaN or infinite.
    """
    for name, value in weights.items():
        if name in state and value.dtype != state[name].dtype:
            raise PackingError(f"{name}: expected {state[name].dtype}, got {value.dtype}")
        if name in finite and not bool(torch.isfinite(value).all()):
            raise PackingError(f"{name}: expected finite numbers, got NaN or infinity")


def _check_layout(layout: Mapping[str, Any]) -> None:
    check_count(layout["num_nodes"], "nodes")
    check_count(layout["num_buckets"], "degree buckets", low=1, high=MAX_BUCKETS)
    for name, size in layout["sizes"].items():
        for part in ("num_rows", "num_columns", "num_ranges"):
            check_count(size[part], f"{part} of {name}")
        content = size["content"]
        if content is None:
            continue
        check_count(content["num_nonzeros"], f"non-zeros of {name}", high=_MOST_VALUES)
        check_count(content["max_row_nonzeros"], f"non-zeros of a row of {name}")
        if content["num_values"] is not None:
            check_count(content["num_values"], f"values of {name}")
        check_flag(content["keeps_zero"], f"keeps_zero of {name}")
        if content["lossless"]:
            check_widths(content["lossless"], f"lossless widths of {name}")


def _sites_of(site: Mapping[str, Any], left: Mapping[Site, SiteSize]) -> dict[Site, SiteSize]:
    """Return the sites of the layout that one of the model stands for."""
    try:
        parsed = Site.parse(_text(site, "name", "site"))
    except ValueError as error:
        raise PackingError(str(error)) from error
    found = {
        known: size
        for known, size in left.items()
        if (known.layer, known.component) == (parsed.layer, parsed.component)
    }
    if not found or parsed.bucket is not None:
        raise PackingError(f"site {parsed}: expected one that the layout has, once")
    return found


def _check_site(
    site: Mapping[str, Any],
    of_site: Mapping[Site, SiteSize],
    layout: FeatureLayout,
    config: QuantizerConfig,
) -> tuple[int, ...]:
    name = site["name"]
    widths = check_widths(site.get("bit_widths"), f"bit widths of {name}")
    expected = {None} if len(widths) == 1 else set(range(len(widths)))
    buckets = {known.bucket for known in of_site}
    if len(widths) not in {1, layout.num_buckets} or not buckets <= expected:
        raise PackingError(f"{name}: expected a bit width for each degree bucket, got {widths}")
    is_attention = name.endswith("/attention")
    axis = "tensor" if is_attention else config.axis
    if site.get("axis") != axis:
        raise PackingError(f"{name}: expected ranges by {axis}, got {site.get('axis')!r}")
    if is_attention and len(widths) != 1:
        raise PackingError(f"{name}: expected one bit width, got {widths}")
    takes_input = {size.content is not None for size in of_site.values()}
    if takes_input != {site.get("input") is not None}:
        raise PackingError(f"{name}: its input and the layout differ")
    if site["input"] is not None:
        _check_input(name, site["input"], of_site, widths, layout.num_nodes)
    return widths


def _check_input(
    name: str,
    held: object,
    of_site: Mapping[Site, SiteSize],
    widths: tuple[int, ...],
    num_nodes: int,
) -> None:
    if not isinstance(held, dict) or not isinstance(held.get("parts"), dict):
        raise PackingError(f"input of {name}: expected parts, got {held!r}")
    check_flag(held.get("sparse"), f"input of {name}, sparse")
    numbers = {str(known.bucket or 0): size for known, size in of_site.items()}
    if set(held["parts"]) != set(numbers):
        raise PackingError(
            f"input of {name}: expected parts {sorted(numbers)}, got {sorted(held['parts'])}"
        )
    for number, size in numbers.items():
        part, where = held["parts"][number], f"input of {name}, part {number}"
        if not isinstance(part, dict):
            raise PackingError(f"{where}: expected fields, got {part!r}")
        _text(part, "store", where)
        check_count(part.get("count_bits"), f"{where}, bits of a count")
        shape = check_shape(part.get("shape"), where)
        if shape != (size.num_rows, size.num_columns):
            raise PackingError(
                f"{where}: expected {size.num_rows} rows of {size.num_columns}, got {shape}"
            )
        if part.get("bit_width") != widths[int(number)]:
            raise PackingError(
                f"{where}: expected {widths[int(number)]} bits, got {part.get('bit_width')!r}"
            )
    if sum(size.num_rows for size in of_site.values()) != num_nodes:
        raise PackingError(f"input of {name}: expected {num_nodes} rows in all")


def _mapping(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    if not isinstance(value, dict):
        raise PackingError(f"{name}: expected an object, got {value!r}")
    return value


def _text(fields: Mapping[str, Any], name: str, where: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise PackingError(f"{where}: expected a text as {name}, got {value!r}")
    return value
