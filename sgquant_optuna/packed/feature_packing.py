"""Quantizes and packs dense rows into the buffer of packed features, a block at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sgquant_optuna.packed.fast import plane_table
from sgquant_optuna.quantization.affine import quantize
from sgquant_optuna.quantization.packing import pack
from sgquant_optuna.quantization.quantizer_config import Rounding
from sgquant_optuna.quantization.sites import FULL_PRECISION

if TYPE_CHECKING:
    from sgquant_optuna.packed.features import PackedFeatures


def pack_bucket(
    features: PackedFeatures, x: Tensor, bucket: int, rounding: Rounding, *, fast: bool
) -> None:
    """Write the rows of one degree bucket.

    Args:
        features:
            Where to; its ranges and widths say how.
        x:
            Rows of all nodes, ``[N, F]`` float32, without gradient.
        bucket:
            Which rows.
        rounding:
            ``"nearest"`` or ``"floor"``.
        fast:
            Whether to use the compiled kernel.

    Raises:
        ValueError:
            If a row holds NaN, or infinity at 32 bits.
    """
    packed, width = features.packed_rows(bucket), features.bit_widths[bucket]
    if fast and width != FULL_PRECISION and x.is_contiguous():
        nodes = (features.bucket == bucket).nonzero()[:, 0]
        _pack_compiled(features, x, nodes, nodes, bucket, rounding, packed)
        return
    for rows, nodes in features.blocks(bucket):
        block = x[nodes].contiguous()
        if width == FULL_PRECISION:
            if not torch.isfinite(block).all():  # a code would stand for the end of its range
                raise ValueError("features: expected finite numbers at 32 bits, got NaN or inf")
            packed[rows] = block.view(torch.uint8)
        elif (
            fast
        ):  # the kernel takes contiguous rows: copying all at once would take as much again
            places = torch.arange(len(nodes))
            _pack_compiled(features, block, places, nodes, bucket, rounding, packed[rows])
        else:
            line = nodes if features.ranges_by_row else bucket
            scale, zero_point = features.scale[line], features.zero_point[line]
            packed[rows] = pack(
                quantize(block, scale, zero_point, width, rounding=rounding), width
            )


def _pack_compiled(
    features: PackedFeatures,
    x: Tensor,
    places: Tensor,
    nodes: Tensor,
    bucket: int,
    rounding: Rounding,
    packed: Tensor,
) -> None:
    """Pack the rows ``places`` of ``x``, which are those of ``nodes``."""
    from sgquant_optuna.packed import kernels

    width = features.bit_widths[bucket]
    with kernels.LOCK:
        num_nan = kernels.pack_rows(
            x.numpy(),
            places.numpy(),
            (nodes if features.ranges_by_row else torch.full_like(nodes, bucket)).numpy(),
            features.scale.numpy(),
            features.zero_point.numpy(),
            width,
            plane_table([width])[0],
            rounding == "nearest",
            packed.numpy(),
        )
    if num_nan:
        raise ValueError(f"features: expected numbers, got NaN in {num_nan} rows")
