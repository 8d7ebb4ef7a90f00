"""Calls of the compiled kernels of the ``fast`` extra; the first one imports numba."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy
import torch
from torch import Tensor

from sgquant_optuna.quantization.layout import planes
from sgquant_optuna.quantization.sites import FULL_PRECISION

PlaneTable = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.int64]]


def has_kernels(device: torch.device | None = None) -> bool:
    """Whether the ``fast`` extra is installed, and runs on the device if one is given."""
    return find_spec("numba") is not None and (device is None or device.type == "cpu")


def pack_rows(
    x: Tensor,
    places: Tensor,
    lines: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bit_width: int,
    to_nearest: bool,
    packed: Tensor,
) -> None:
    """Quantize and pack some rows.

    Args:
        x:
            Rows, ``[R, F]`` float32, contiguous.
        places:
            Rows of ``x`` to pack, ``[n]`` int64.
        lines:
            Line of ``scale`` of each of them, ``[n]`` int64.
        scale:
            Step between codes, ``[lines, 1]`` or ``[lines, F]``.
        zero_point:
            Real value of code 0, same shape.
        bit_width:
            Bits of a code, 1-8 or 16.
        to_nearest:
            Whether to round to the nearest code; else down.
        packed:
            Output, ``[n, bytes of a row]`` uint8.

    Raises:
        ValueError:
            If a row holds NaN.
    """
    from sgquant_optuna.packed import numba_kernels

    with numba_kernels.LOCK:
        num_nan = numba_kernels.pack_rows(
            x.numpy(),
            places.numpy(),
            lines.numpy(),
            scale.numpy(),
            zero_point.numpy(),
            bit_width,
            plane_table([bit_width])[0],
            to_nearest,
            packed.numpy(),
        )
    if num_nan:
        raise ValueError(f"features: expected numbers, got NaN in {num_nan} rows")


def unpack_rows(packed: Tensor, num_columns: int, bit_width: int, out: Tensor) -> None:
    """Unpack rows, ``[R, bytes of a row]``, to float32 codes in ``out``, ``[R, F + 8]``.

    Codes of the last byte may reach beyond the last column.
    """
    from sgquant_optuna.packed import numba_kernels

    numba_kernels.unpack_rows(
        packed.numpy(), plane_table([bit_width])[0], num_columns, out.numpy()
    )


def plane_table(bit_widths: Sequence[int]) -> PlaneTable:
    """Return the widths of the planes of each bucket, ``[B, 3]``, filled up with 0.

    A line of zeros stands for float32.
    """
    lines = [() if width == FULL_PRECISION else planes(width) for width in bit_widths]
    return torch.tensor([(*line, 0, 0, 0)[:3] for line in lines]).numpy()
