"""Contents of the graph's own features: how sparse they are, and what quantization changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sgquant_optuna.graph.sparse_features import SparseFeatures
from sgquant_optuna.quantization.input_stores import MAX_VALUES, InputContent
from sgquant_optuna.quantization.quantizers import FeatureQuantizer
from sgquant_optuna.quantization.row_values import row_values

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
    # A width can be lossless only where the values are few, in all or in a row.
    masks = {
        number: rows == number
        for number, content in contents.items()
        if (content.num_values, content.row_value) != (None, None)
    }
    lossless, keeps_zero = _lossless_widths(quantizer, x, dense, bucket, masks)
    return {
        number: replace(content, keeps_zero=keeps_zero, lossless=tuple(lossless.get(number, ())))
        for number, content in contents.items()
    }


def exact_content(x: Tensor) -> InputContent:
    """Describe rows that stay as they are.

    Args:
        x:
            Rows, ``[R, F]``.
    """
    counts, found = torch.count_nonzero(x, dim=1), row_values(x)
    return InputContent(
        num_nonzeros=int(counts.sum()),
        max_row_nonzeros=int(counts.max()),
        num_values=_count_nonzero_values(x),
        keeps_zero=True,
        row_value=None if found is None else found[0],
    )


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


def _lossless_widths(
    quantizer: FeatureQuantizer,
    x: Tensor,
    dense: Tensor,
    bucket: Tensor | None,
    masks: Mapping[int, Tensor],
) -> tuple[dict[int, list[int]], bool]:
    """Return the candidates that change no value of a bucket, and whether all keep zero.

    ``masks`` holds the rows, ``[N]`` bool, of each bucket to compare.
    """
    lossless: dict[int, list[int]] = {number: [] for number in masks}
    keeps_zero = True
    chosen = quantizer.bit_widths
    for width in quantizer.candidates:
        quantizer.set_bit_widths((width,) * quantizer.num_buckets)
        keeps_zero = keeps_zero and quantizer.keeps_zero()
        if not masks:
            continue
        same = (_dense(quantizer(x, bucket)) == dense).all(dim=1).cpu()
        for number, mask in masks.items():
            if bool(same[mask].all()):
                lossless[number].append(width)
    quantizer.set_bit_widths(chosen)
    return lossless, keeps_zero
