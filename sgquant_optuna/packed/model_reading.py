"""Reads the parts of a packed model: its plain weights, its input, its ranges."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sgquant_optuna.exceptions import ModelError, PackingError
from sgquant_optuna.fingerprint import model_fingerprint
from sgquant_optuna.models import MODELS
from sgquant_optuna.packed.input_part import InputPart
from sgquant_optuna.packed.model_contents import stored_lines
from sgquant_optuna.packed.model_input import PackedInput


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
    known = fields["model"]
    if model is not None:
        model = copy.deepcopy(model)
    elif known is not None:
        with torch.random.fork_rng(devices=[]):
            model = MODELS[known["name"]].build(**known["arguments"])
    else:
        raise ModelError(
            f"packed model: expected an instance of {fields['model_fingerprint']['class']}, got "
            f"none; give the model whose weights the file holds, as model="
        )
    found = model_fingerprint(model)
    if found != fields["model_fingerprint"]:
        raise ModelError(
            f"packed model: expected the architecture that was packed "
            f"({fields['model_fingerprint']['class']}), got a {found['class']} of other layers or "
            f"sizes"
        )
    prefix = "weights."
    weights = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise PackingError("packed model: its weights do not fit its architecture") from error
    return model.requires_grad_(False)


def packed_input(
    name: str, site: Mapping[str, Any], tensors: Mapping[str, Tensor], bucket: Tensor | None
) -> PackedInput:
    """Return the graph's features as one site holds them.

    Args:
        name:
            Name of the site.
        site:
            Its fields.
        tensors:
            Tensors of the packed model.
        bucket:
            Degree bucket of each node, ``[N]``; ``None`` for one bucket.

    Raises:
        PackingError:
            If they do not fit one another.
    """
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
    return PackedInput(parts, bucket, sparse=site["input"]["sparse"])


def spread_ranges(
    name: str,
    site: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    bucket: Tensor | None,
    num_nodes: int,
) -> tuple[Tensor, Tensor]:
    """Spread the stored ranges of a site over all buckets or rows; unquantized ones get scale 1.

    Args:
        name:
            Name of the site.
        site:
            Its fields.
        tensors:
            Tensors of the packed model.
        bucket:
            Degree bucket of each node, ``[N]``; ``None`` for one bucket.
        num_nodes:
            Nodes N.

    Returns:
        Scale and zero point, ``[B, 1]``, ``[B, F]`` or ``[N, 1]`` each.
    """
    scale = tensors[f"scale.{name}"]
    lines = num_nodes if site["axis"] == "row" else len(site["bit_widths"])
    stored = stored_lines(site["bit_widths"], site["axis"], bucket)
    spread = scale.new_ones(2, lines, scale.shape[1])
    spread[0, stored], spread[1, stored] = scale, tensors[f"zero_point.{name}"]
    return spread[0], spread[1]
