"""Contents of the graph's own features: how sparse they are, and what quantization changes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sgquant_optuna.graph.sparse_features import SparseFeatures
from sgquant_optuna.quantization.gap_codes import GapCode
from sgquant_optuna.quantization.input_stores import MAX_VALUES, InputContent, SparseContent
from sgquant_optuna.quantization.quantizers import FeatureQuantizer
from sgquant_optuna.quantization.row_values import row_values
from sgquant_optuna.quantization.sites import FULL_PRECISION

_FIRST_VALUES = 1 << 20
"""Values that are counted first: most real features have more than 256 distinct ones there."""


def input_contents(
    quantizer: FeatureQuantizer, x: Tensor, bucket: Tensor | None
) -> dict[int, InputContent]:
    """Describe the values of the input, for each degree bucket.

    Args:
        quantizer:
            Calibrated quantizer of the input.
        x:
            Input features, ``[N, F]``, dense or sparse.
        bucket:
            Degree bucket of each row, ``[N]`` int64, or ``None`` for one bucket.

    Returns:
        Content of each bucket that has rows.
    """
    dense = _dense(x)
    rows = torch.zeros(len(dense), dtype=torch.long) if bucket is None else bucket.cpu()
    contents = {number: exact_content(dense[rows == number]) for number in rows.unique().tolist()}
    # Of many values that are rarely zero, a width leaves nothing that another store holds.
    masks = {
        number: rows == number
        for number, content in contents.items()
        if content.row_value is not None or _is_special(content.by_width[FULL_PRECISION])
    }
    chosen = quantizer.bit_widths
    for width in quantizer.candidates if masks else ():
        quantizer.set_bit_widths((width,) * quantizer.num_buckets)
        left = _dense(quantizer(x, bucket))
        for number, mask in masks.items():
            contents[number] = with_width(contents[number], width, dense[mask], left[mask])
    quantizer.set_bit_widths(chosen)
    return contents


def exact_content(x: Tensor) -> InputContent:
    """Describe rows that stay as they are.

    Args:
        x:
            Rows, ``[R, F]``.
    """
    found = row_values(x)
    return InputContent(
        by_width={FULL_PRECISION: _sparse_content(x)},
        row_value=None if found is None else found[0],
    )


def with_width(content: InputContent, width: int, x: Tensor, left: Tensor) -> InputContent:
    """Add what a bit width leaves to the content of some rows.

    Args:
        content:
            Content of the rows.
        width:
            Bit width.
        x:
            The rows as they are, ``[R, F]``.
        left:
            The same, quantized.
    """
    if torch.equal(x, left):
        described = content.by_width[FULL_PRECISION]
        lossless = (*content.lossless, width)
    else:
        described, lossless = _sparse_content(left), content.lossless
    return replace(content, by_width={**content.by_width, width: described}, lossless=lossless)


def _sparse_content(x: Tensor) -> SparseContent:
    counts = torch.count_nonzero(x, dim=1)
    is_sparse = 2 * int(counts.sum()) <= x.numel()
    return SparseContent(
        num_nonzeros=int(counts.sum()),
        max_row_nonzeros=int(counts.max()) if len(counts) else 0,
        num_values=_count_nonzero_values(x),
        gap_bits=GapCode.of(x).num_bits if is_sparse else None,
    )


def _is_special(content: SparseContent) -> bool:
    return content.num_values is not None or content.gap_bits is not None


def _dense(x: Tensor) -> Tensor:
    return x.dense() if isinstance(x, SparseFeatures) else x


def _count_nonzero_values(x: Tensor) -> int | None:
    """Count the distinct non-zero values, or return ``None`` if a codebook cannot hold them."""
    first = x[: max(1, _FIRST_VALUES // max(1, x.shape[1]))].unique()
    if len(first) > MAX_VALUES + 1:
        return None
    found = x.unique()
    number = int(torch.count_nonzero(found))
    return number if number <= MAX_VALUES else None
