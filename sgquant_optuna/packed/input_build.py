"""Packs the rows of one degree bucket of the graph's own features into a store."""

from __future__ import annotations

import torch
from torch import Tensor

from sgquant_optuna.packed.input_part import InputPart, codebook_bits
from sgquant_optuna.packed.integers import pack_integers
from sgquant_optuna.quantization.affine import fake_quantize, quantize
from sgquant_optuna.quantization.layout import bits_for
from sgquant_optuna.quantization.packing import pack
from sgquant_optuna.quantization.quantizer_config import Rounding
from sgquant_optuna.quantization.sites import FULL_PRECISION


def build_input_part(
    x: Tensor,
    store: str,
    bit_width: int,
    scale: Tensor,
    zero_point: Tensor,
    rounding: Rounding,
) -> InputPart:
    """Store ``x``, ``[R, F]`` float32.

    Args:
        x:
            The rows.
        store:
            Which store.
        bit_width:
            1-8, 16 or 32.
        scale:
            Step between codes, ``[1, 1]``, ``[1, F]`` or ``[R, 1]``; unused at 32 bits.
        zero_point:
            Real value of code 0, same shape.
        rounding:
            ``"nearest"`` or ``"floor"``.
    """
    is_full = bit_width == FULL_PRECISION
    tensors: dict[str, Tensor] = {}
    count_bits = 0
    pattern = x != 0
    if store.startswith("sparse"):
        counts = pattern.sum(dim=1)
        count_bits = bits_for(int(counts.max()) if len(counts) else 0)
        row, column = pattern.nonzero().unbind(1)
        tensors["counts"] = pack_integers(counts, count_bits)
        tensors["columns"] = pack_integers(column, bits_for(max(0, x.shape[1] - 1)))
    if "codebook" in store:
        if store.startswith("sparse"):
            values, place = x[pattern].unique(return_inverse=True)
            tensors["codes"] = pack_integers(place, bits_for(max(0, len(values) - 1)))
        else:
            values = x.unique()
            bits = codebook_bits(len(values))
            # Places are 8 bytes each: a block of rows at a time.
            packed = [pack(torch.searchsorted(values, rows), bits) for rows in x.split(1024)]
            tensors["codes"] = torch.cat(packed)
        if not is_full:
            values = _fake_values(values, scale, zero_point, bit_width, rounding)
        tensors["values"] = values
    elif is_full:
        tensors["values"] = x[pattern] if store == "sparse" else x
    else:
        tensors |= {"scale": scale, "zero_point": zero_point}
        if store == "rows":
            codes = quantize(x, scale, zero_point, bit_width, rounding=rounding)
            tensors["codes"] = pack(codes, bit_width)
        else:
            lines = scale.expand_as(x)[pattern], zero_point.expand_as(x)[pattern]
            codes = quantize(x[pattern], *lines, bit_width, rounding=rounding)
            tensors["codes"] = pack_integers(codes.long(), bit_width)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return InputPart(store, bit_width, (x.shape[0], x.shape[1]), tensors, count_bits)


def _fake_values(
    values: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bit_width: int,
    rounding: Rounding,
) -> Tensor:
    """Return what each value decodes to; with several ranges, a lossless width is certain."""
    if scale.numel() > 1:
        return values
    return fake_quantize(values[None], scale, zero_point, bit_width, rounding=rounding)[0]
