"""Reads the parts of a packed model: its plain weights, its input, its ranges."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sgquant_optuna.exceptions import ModelError, PackingError
from sgquant_optuna.graph.fingerprint import model_fingerprint
from sgquant_optuna.graph.paper_models import MODELS
from sgquant_optuna.packed.checks import check_count
from sgquant_optuna.packed.input_features import InputPart, PackedInput
from sgquant_optuna.packed.integers import read_integers
from sgquant_optuna.packed.model_checks import check_weights, site_ranges
from sgquant_optuna.packed.model_contents import stored_lines
from sgquant_optuna.quantization.layout import bits_for
from sgquant_optuna.quantization.memory import FeatureLayout, site_store
from sgquant_optuna.quantization.sites import Site


def plain_model(
    fields: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module | None
) -> nn.Module:
    """Return the float32 model with the weights of a packed one.

    Args:
        fields:
            Fields of the packed model.
        tensors:
            Its tensors.
        model:
            An instance of the architecture; may be left out for models of the paper.

    Raises:
        ModelError:
            If the model is of another architecture, or is needed and missing.
        PackingError:
            If the weights do not fit.
    """
    known = fields.get("model")
    prefix = "weights."
    weights = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
    if model is not None:
        model = copy.deepcopy(model)
    elif known is not None:
        model = _paper_model(known, fields["model_fingerprint"], weights)
    else:
        raise ModelError(
            f"packed model: expected an instance of {fields['model_fingerprint']['class']}, got "
            f"none; give the model whose weights the file holds, as model="
        )
    _check_architecture(model, fields["model_fingerprint"])
    state = model.state_dict()
    # A buffer of another model may be a mask of infinities.
    finite = set(state) if known is not None else {name for name, _ in model.named_parameters()}
    check_weights(weights, state, finite)
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise PackingError("packed model: its weights do not fit its architecture") from error
    return model.requires_grad_(False)


def packed_input(
    site: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    bucket: Tensor | None,
    layout: FeatureLayout,
) -> PackedInput:
    """Return the graph's features as one site holds them.

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
            If they do not fit one another, or take other bytes than the accounting says.
    """
    name = site["name"]
    parts: list[InputPart | None] = [None] * len(site["bit_widths"])
    for number, part in site["input"]["parts"].items():
        prefix = f"input.{name}.{number}."
        num_rows, num_columns = part["shape"]
        parts[int(number)] = InputPart(
            part["store"],
            part["bit_width"],
            (num_rows, num_columns),
            {key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)},
            part["count_bits"],
        )
    _check_stores(Site.parse(name), parts, layout)
    return PackedInput(parts, bucket, sparse=site["input"]["sparse"])


def spread_ranges(
    site: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    bucket: Tensor | None,
    layout: FeatureLayout,
) -> tuple[Tensor, Tensor]:
    """Spread the stored ranges of a site over all buckets or rows; unquantized ones get scale 1.

    Args:
        site:
            Its fields.
        tensors:
            Tensors of the packed model.
        bucket:
            Degree bucket of each node, ``[N]``; ``None`` for one bucket.
        layout:
            Sizes of all sites.

    Returns:
        Scale and zero point, ``[B, 1]``, ``[B, F]`` or ``[N, 1]`` each.

    Raises:
        PackingError:
            If they cannot be ranges of the site.
    """
    widths, axis = site["bit_widths"], site["axis"]
    scale, zero_point = site_ranges(site, tensors, bucket, layout)
    lines = layout.num_nodes if axis == "row" else len(widths)
    stored = stored_lines(widths, axis, bucket)
    spread = scale.new_ones(2, lines, scale.shape[1])
    spread[0, stored], spread[1, stored] = scale, zero_point
    return spread[0], spread[1]


def degree_buckets(tensors: Mapping[str, Tensor], layout: FeatureLayout) -> Tensor | None:
    """Return the degree bucket of each node, ``[N]`` uint8, or ``None`` where there is one.

    Raises:
        PackingError:
            If they are missing, too many, or out of range.
    """
    if (layout.num_buckets > 1) != ("bucket" in tensors):
        raise PackingError(
            f"degree buckets: expected those of {layout.num_buckets}, the file has "
            f"{'some' if 'bucket' in tensors else 'none'}"
        )
    if layout.num_buckets == 1:
        return None
    bits = bits_for(layout.num_buckets - 1)
    bucket = read_integers(tensors["bucket"], layout.num_nodes, bits)
    if len(bucket) and int(bucket.max()) >= layout.num_buckets:
        raise PackingError(
            f"degree buckets: expected 0 to {layout.num_buckets - 1}, got {int(bucket.max())}"
        )
    return bucket.to(torch.uint8)


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


def _check_stores(site: Site, parts: Sequence[InputPart | None], layout: FeatureLayout) -> None:
    for number, part in enumerate(parts):
        if part is None:
            continue
        known = site if len(parts) == 1 else Site(site.layer, site.component, number)
        expected = site_store(known, layout.sizes[known], part.bit_width)
        if expected != (part.store, part.nbytes):
            raise PackingError(
                f"{known}: the accounting says {expected[1]} bytes of {expected[0]}, the file "
                f"has {part.nbytes} of {part.store}"
            )
