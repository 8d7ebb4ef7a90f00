"""Checks of what a file says of itself: a crafted file has a right checksum too.

Every number here is the size of a buffer or an index into one later, so it is checked before.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.quantization.sites import FULL_PRECISION, check_bit_width

MAX_COUNT = 2**31 - 1
"""Largest number of nodes, columns or edges: places are int32."""
MAX_BUCKETS = 256
"""Buckets are numbered by one byte."""


def check_count(value: object, where: str, *, low: int = 0, high: int = MAX_COUNT) -> int:
    """Return ``value`` if it is a whole number from ``low`` to ``high``.

    Raises:
        PackingError:
            If it is not.
    """
    if type(value) is not int or not low <= value <= high:
        raise PackingError(f"{where}: expected a whole number from {low} to {high}, got {value!r}")
    return value


def check_shape(value: object, where: str) -> tuple[int, int]:
    """Return the number of rows and of columns.

    Raises:
        PackingError:
            If the value is not two counts.
    """
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise PackingError(f"{where}: expected rows and columns, got {value!r}")
    return check_count(value[0], f"{where}, rows"), check_count(value[1], f"{where}, columns")


def check_flag(value: object, where: str) -> bool:
    """Return ``value`` if it is true or false.

    Raises:
        PackingError:
            If it is neither.
    """
    if not isinstance(value, bool):
        raise PackingError(f"{where}: expected true or false, got {value!r}")
    return value


def check_widths(value: object, where: str = "bit widths") -> tuple[int, ...]:
    """Return the width of each bucket.

    Raises:
        PackingError:
            If the value is not a list of 1 to 256 supported widths.
    """
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_BUCKETS:
        raise PackingError(f"{where}: expected a list of 1 to {MAX_BUCKETS}, got {value!r}")
    try:
        return tuple(check_bit_width(width, where=where) for width in value)
    except ValueError as error:
        raise PackingError(str(error)) from None


def check_tensor(
    tensor: Tensor, where: str, dtype: torch.dtype, shapes: Collection[tuple[int, ...]]
) -> None:
    """Check that a tensor is of a type and of one of several shapes.

    Raises:
        PackingError:
            If it is not.
    """
    if tensor.dtype != dtype or tuple(tensor.shape) not in shapes:
        expected = " or ".join(str(list(shape)) for shape in sorted(shapes))
        raise PackingError(
            f"{where}: expected {dtype} {expected}, got {tensor.dtype} {list(tensor.shape)}"
        )


def check_buckets(bucket: Tensor, num_buckets: int) -> None:
    """Check that every degree bucket, ``[N]``, is one of B.

    Raises:
        PackingError:
            If one is not.
    """
    if len(bucket) and int(bucket.max()) >= num_buckets:
        raise PackingError(
            f"degree buckets: expected 0 to {num_buckets - 1}, got {int(bucket.max())}"
        )


def check_finite(tensor: Tensor, where: str) -> None:
    """Check that a tensor holds neither NaN nor infinity.

    Raises:
        PackingError:
            If it does.
    """
    if not bool(torch.isfinite(tensor).all()):
        raise PackingError(f"{where}: expected finite numbers, got NaN or infinity")


def check_ranges(
    scale: Tensor,
    zero_point: Tensor,
    where: str,
    shapes: Collection[tuple[int, ...]],
    top: Tensor | int,
) -> None:
    """Check steps between codes and the real values of code 0.

    Args:
        scale:
            Steps between codes.
        zero_point:
            Real values of code 0.
        where:
            Name of what the ranges belong to, for messages.
        shapes:
            Shapes that both may have.
        top:
            Largest code, or that of each line, ``[lines, 1]``; its real value must be finite.

    Raises:
        PackingError:
            If type or shape differ, a step is not above 0, or a value is not finite.
    """
    check_tensor(scale, f"scale of {where}", torch.float32, shapes)
    check_tensor(zero_point, f"zero point of {where}", torch.float32, {tuple(scale.shape)})
    check_finite(scale, f"scale of {where}")
    check_finite(zero_point, f"zero point of {where}")
    if bool((scale <= 0).any()):
        raise PackingError(f"scale of {where}: expected steps above 0, got {float(scale.min())}")
    check_finite(scale * top + zero_point, f"largest value of {where}")


def top_codes(bit_widths: Sequence[int]) -> Tensor:
    """Return the largest code of each bucket, ``[B, 1]`` float32; 0 where there are no codes."""
    tops = [0 if width == FULL_PRECISION else 2**width - 1 for width in bit_widths]
    return torch.tensor(tops, dtype=torch.float32)[:, None]
