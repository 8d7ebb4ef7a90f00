"""Whether the compiled kernels of the ``fast`` extra are there, and what they take."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy
import torch

from sgquant_optuna.quantization.layout import planes
from sgquant_optuna.quantization.sites import FULL_PRECISION

PlaneTable = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.int64]]


def has_kernels() -> bool:
    """Whether the ``fast`` extra is installed."""
    return find_spec("numba") is not None


def plane_table(bit_widths: Sequence[int]) -> PlaneTable:
    """Return the widths of the planes of each bucket, ``[B, 3]``, filled up with 0.

    A line of zeros stands for float32.
    """
    lines = [() if width == FULL_PRECISION else planes(width) for width in bit_widths]
    return torch.tensor([(*line, 0, 0, 0)[:3] for line in lines]).numpy()
