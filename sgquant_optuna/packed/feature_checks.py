"""Whether the parts of packed features fit one another, and where each bucket lies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed.checks import (
    MAX_COUNT,
    check_count,
    check_flag,
    check_ranges,
    check_tensor,
    check_widths,
    top_codes,
)
from sgquant_optuna.quantization.layout import row_bytes
from sgquant_optuna.quantization.sites import FULL_PRECISION


def check_features(
    data: Tensor,
    bucket: Tensor,
    bit_widths: tuple[int, ...],
    scale: Tensor,
    zero_point: Tensor,
    num_columns: int,
    ranges_by_row: bool,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Check the parts of :class:`~sgquant_optuna.packed.features.PackedFeatures`.

    Returns:
        Rows of each bucket, and the first byte of each in the buffer.

    Raises:
        PackingError:
            If they do not fit one another.
    """
    check_widths(bit_widths)
    check_count(num_columns, "features, columns")
    check_flag(ranges_by_row, "ranges by row")
    num_nodes, num_buckets = len(bucket) if bucket.dim() else 0, len(bit_widths)
    check_count(num_nodes, "features, rows")
    check_tensor(bucket, "degree buckets", torch.uint8, {(num_nodes,)})
    if num_nodes and int(bucket.max()) >= num_buckets:
        raise PackingError(
            f"degree buckets: expected 0 to {num_buckets - 1}, got {int(bucket.max())}"
        )
    devices = {str(part.device) for part in (data, bucket, scale, zero_point)}
    if len(devices) != 1:
        raise PackingError(f"packed features: expected one device, got {sorted(devices)}")
    tops = top_codes(bit_widths).to(scale.device)
    if ranges_by_row:
        shapes, tops = {(num_nodes, 1)}, tops[bucket.long()]
    else:
        shapes = {(num_buckets, 1), (num_buckets, num_columns)}
    check_ranges(scale, zero_point, "features", shapes, tops)
    counts = torch.bincount(bucket.long(), minlength=num_buckets).tolist()
    order = bucket_order(bit_widths)
    sizes = [counts[b] * stored_row_bytes(num_columns, bit_widths[b]) for b in order]
    check_tensor(data, "packed rows", torch.uint8, {(sum(sizes),)})
    if not data.is_contiguous():
        raise PackingError("packed rows: expected bytes one after the other")
    starts = dict(zip(order, accumulate(sizes, initial=0), strict=False))
    return tuple(counts), tuple(starts[b] for b in range(num_buckets))


def check_declared_size(shape: tuple[int, int], nbytes: int) -> None:
    """Check rows and columns that a file declares, before anything of their size is made.

    Raises:
        PackingError:
            If the bytes of the rows are too few: each value takes a bit at least.
    """
    num_nodes, num_columns = shape
    if num_nodes * max(1, num_columns) > min(8 * nbytes, MAX_COUNT * max(1, num_columns)):
        raise PackingError(f"packed rows: expected those of {list(shape)}, got {nbytes} bytes")


def bucket_order(bit_widths: Sequence[int]) -> tuple[int, ...]:
    """Return the buckets as they lie in the buffer: float32 comes first, so that it is aligned."""
    return tuple(
        sorted(range(len(bit_widths)), key=lambda b: (bit_widths[b] != FULL_PRECISION, b))
    )


def stored_row_bytes(num_columns: int, bit_width: int) -> int:
    """Bytes of one row, float32 at 32 bits."""
    return 4 * num_columns if bit_width == FULL_PRECISION else row_bytes(num_columns, bit_width)
