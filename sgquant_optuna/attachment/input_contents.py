"""A look at the graph's own features: how sparse they are, and what quantizing them changes."""

from __future__ import annotations

import torch
from torch import Tensor

from sgquant_optuna.graph.sparse_features import SparseFeatures
from sgquant_optuna.quantization.input_stores import MAX_VALUES, InputContent
from sgquant_optuna.quantization.quantizers import FeatureQuantizer

_GLANCE = 1 << 20
"""Values that are looked at first: most real features show more than 256 values there."""


def input_contents(
    quantizer: FeatureQuantizer, x: Tensor, bucket: Tensor | None
) -> dict[int, InputContent]:
    """Look at the input, bucket by bucket.

    Args:
        quantizer:
            The calibrated quantizer of the input.
        x:
            The input, ``[N, F]``, dense or sparse.
        bucket:
            Degree bucket of each row, ``[N]`` int64, or ``None`` for one bucket.

    Returns:
        Content of each bucket that has rows.
    """
    dense = x.dense() if isinstance(x, SparseFeatures) else x
    rows = torch.zeros(len(dense), dtype=torch.long) if bucket is None else bucket.cpu()
    in_row = torch.count_nonzero(dense, dim=1).cpu()
    values = {number: _non_zero_values(dense[rows == number]) for number in rows.unique().tolist()}
    # A width keeps all values only if there are few: nothing to look for elsewhere.
    few = [number for number, found in values.items() if found is not None]
    lossless: dict[int, list[int]] = {number: [] for number in values}
    keeps_zero = True
    widths = quantizer.bit_widths
    for width in quantizer.candidates:
        quantizer.set_bit_widths((width,) * quantizer.num_buckets)
        keeps_zero = keeps_zero and quantizer.keeps_zero()
        if few:
            quantized = quantizer(x, bucket)
            fake = quantized.dense() if isinstance(quantized, SparseFeatures) else quantized
            same = (fake == dense).all(dim=1).cpu()
            for number in few:
                if bool(same[rows == number].all()):
                    lossless[number].append(width)
    quantizer.set_bit_widths(widths)
    contents = {}
    for number, found in values.items():
        counts = in_row[rows == number]
        contents[number] = InputContent(
            num_nonzeros=int(counts.sum()),
            max_row_nonzeros=int(counts.max()),
            num_values=found,
            keeps_zero=keeps_zero,
            lossless=tuple(lossless[number]),
        )
    return contents


def _non_zero_values(x: Tensor) -> int | None:
    """Count the different values that are not zero, or give up above the size of a codebook."""
    glance = x[: max(1, _GLANCE // max(1, x.shape[1]))].unique()
    if len(glance) > MAX_VALUES + 1:
        return None
    found = x.unique()
    number = int(torch.count_nonzero(found))
    return number if number <= MAX_VALUES else None
