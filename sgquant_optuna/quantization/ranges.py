"""Range estimators: the interval of a feature matrix that the codes of a bit width cover."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sgquant_optuna.exceptions import CalibrationError
from sgquant_optuna.quantization.affine import affine_parameters, fake_quantize
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig

_BLOCK = 1 << 22
"""Number of elements in one block: calibration never copies a large matrix."""

_FRACTIONS = torch.logspace(-2, 0, 48, dtype=torch.float64)
"""Candidate ends as fractions of the full range, 10 % apart; a finer grid changed no result."""

_SWEEPS = 2
"""Number of times that the upper end and then the lower end are optimised."""

_MAX_LEAST_SQUARES_WIDTH = 8
"""Above this width the step is so small that clipping does not lower the error."""


def estimate_ranges(
    x: Tensor,
    groups: Tensor | None,
    num_groups: int,
    candidates: Sequence[int],
    config: QuantizerConfig,
) -> tuple[Tensor, Tensor]:
    """Measure the range of every group of values, for every bit width.

    If the smallest value of a group is zero, its range starts at exactly zero, so that a sparse
    matrix stays sparse. An empty group has the range [0, 0].

    Args:
        x:
            Features, ``[N, F]``.
        groups:
            Group of each value, int64, broadcasts against ``x``; ``None`` for one group.
        num_groups:
            Number of groups G.
        candidates:
            Bit widths to choose ranges for, W of them.
        config:
            Range estimator, percentile and rounding.

    Returns:
        Lower and upper ends, ``[W, G]`` each, in the type of ``x``.

    Raises:
        CalibrationError:
            If ``x`` holds NaN or infinity.

    Reference:
        SGQuant (Feng et al., 2020, arXiv:2007.05100), the quantization function: ``a_min`` and
        ``a_max`` are minimum and maximum, as the estimator ``"minmax"`` measures them.
    """
    if not torch.isfinite(x).all():
        raise CalibrationError(
            "features to calibrate on: expected finite numbers, got NaN or infinity; "
            "clean the input, or train with a smaller learning rate"
        )
    x = x.detach()
    if not candidates:  # 32 bits alone: no range to choose
        return x.new_empty(0, num_groups), x.new_empty(0, num_groups)
    index = torch.zeros(1, 1, dtype=torch.long, device=x.device) if groups is None else groups
    lower, upper = _extremes(x, index, num_groups)
    if config.range_estimator == "percentile":
        lower, upper = _percentiles(x, index, lower, upper, config.percentile)
    if config.range_estimator != "least_squares":
        return lower.expand(len(candidates), -1), upper.expand(len(candidates), -1)

    centers, counts = _histogram(x, index, lower, upper)
    return ranges_of_histogram(centers, counts, lower, upper, candidates, config)


def ranges_of_histogram(
    centers: Tensor,
    counts: Tensor,
    lower: Tensor,
    upper: Tensor,
    candidates: Sequence[int],
    config: QuantizerConfig,
) -> tuple[Tensor, Tensor]:
    """Choose the range of least squared error of every group from the histogram of its values.

    Args:
        centers:
            Mean of the values in each of K bins, ``[G, K]`` float64.
        counts:
            Number of values in each bin, same shape and type.
        lower:
            Smallest value of each group, ``[G]``.
        upper:
            Largest value of each group, ``[G]``.
        candidates:
            Bit widths to choose ranges for, W of them, at least one.
        config:
            Rounding.

    Returns:
        Lower and upper ends, ``[W, G]`` each, in the type of ``lower``.
    """
    ends = [
        _least_squares(centers, counts, lower, upper, width, config)
        if width <= _MAX_LEAST_SQUARES_WIDTH
        else (lower, upper)
        for width in candidates
    ]
    return torch.stack([low for low, _ in ends]), torch.stack([high for _, high in ends])


def _extremes(x: Tensor, index: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Return minimum and maximum of each group, ``[G]`` each."""
    flat_index = index.expand_as(x).reshape(-1)
    lower = x.new_full((num_groups,), torch.inf).scatter_reduce_(
        0, flat_index, x.reshape(-1), "amin"
    )
    upper = x.new_full((num_groups,), -torch.inf).scatter_reduce_(
        0, flat_index, x.reshape(-1), "amax"
    )
    empty = lower > upper
    return lower.masked_fill(empty, 0), upper.masked_fill(empty, 0)


def _percentiles(
    x: Tensor, index: Tensor, lower: Tensor, upper: Tensor, percentile: float
) -> tuple[Tensor, Tensor]:
    """Return both percentiles of each group by nearest rank, ``[G]`` each, by sorting once."""
    flat_index = index.expand_as(x).reshape(-1)
    order = x.reshape(-1).argsort()
    order = order[flat_index[order].argsort(stable=True)]
    counts = torch.bincount(flat_index, minlength=len(lower))
    starts = counts.cumsum(0) - counts
    ranked = x.reshape(-1)[order]

    def quantile(fraction: float) -> Tensor:
        rank = (fraction * (counts - 1).clamp(min=0)).round().long()
        return ranked[(starts + rank).clamp(max=max(len(ranked) - 1, 0))]

    if not len(ranked):
        return lower, upper
    fraction = percentile / 100
    cut_lower = torch.where(lower == 0, lower, quantile(1 - fraction))
    empty = counts == 0
    return torch.where(empty, lower, cut_lower), torch.where(empty, upper, quantile(fraction))


def _histogram(x: Tensor, index: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and count of the values in K equal bins of each group, ``[G, K]`` each."""
    num_groups = len(lower)
    bins = 2048 if num_groups <= 64 else 128
    counts = x.new_zeros(num_groups * bins, dtype=torch.float64)
    sums = torch.zeros_like(counts)
    width = (upper - lower) / bins
    width = torch.where(width > 0, width, torch.ones_like(width))
    index = index.expand_as(x)
    rows = max(_BLOCK // max(x.shape[1], 1), 1)
    for block, group in zip(x.split(rows), index.split(rows), strict=True):
        slot = ((block - lower[group]) / width[group]).long().clamp_(0, bins - 1)
        slot = (slot + group * bins).reshape(-1)
        counts += torch.bincount(slot, minlength=len(counts))
        sums += torch.bincount(slot, weights=block.reshape(-1).double(), minlength=len(counts))
    centers = sums / counts.clamp(min=1)
    return centers.view(num_groups, bins), counts.view(num_groups, bins)


def _least_squares(
    centers: Tensor,
    counts: Tensor,
    lower: Tensor,
    upper: Tensor,
    bit_width: int,
    config: QuantizerConfig,
) -> tuple[Tensor, Tensor]:
    """Choose the upper and the lower end in turn, each for the least squared error, ``[G]`` each.

    With counts ``n_k`` and means ``c_k`` of the bins, the error of a range is
    ``sum_k n_k * (fake_quantize(c_k) - c_k)**2``. The candidate ends lie between the range's own
    end and the mean, or zero where the range starts at zero.
    """
    num_groups, bins = centers.shape
    rows = max(_BLOCK // (bins * len(_FRACTIONS)), 1)
    lows, highs = [], []
    for start in range(0, num_groups, rows):
        part = slice(start, start + rows)
        center, count = centers[part], counts[part]
        low0, high0 = lower[part].double(), upper[part].double()
        mean = (center * count).sum(1) / count.sum(1).clamp(min=1)
        pivot = torch.where(low0 == 0, low0, mean)  # [g]
        fractions = _FRACTIONS.to(center.device)
        low_ends = pivot[:, None] + (low0 - pivot)[:, None] * fractions  # [g, C]
        high_ends = pivot[:, None] + (high0 - pivot)[:, None] * fractions
        low, high = low0, high0
        for _ in range(_SWEEPS):
            low, high = _least_error_range(
                center, count, low[:, None], high_ends, bit_width, config
            )
            low, high = _least_error_range(
                center, count, low_ends, high[:, None], bit_width, config
            )
        lows.append(low)
        highs.append(high)
    return torch.cat(lows).to(lower.dtype), torch.cat(highs).to(upper.dtype)


def _least_error_range(
    centers: Tensor,
    counts: Tensor,
    lower: Tensor,
    upper: Tensor,
    bit_width: int,
    config: QuantizerConfig,
) -> tuple[Tensor, Tensor]:
    """Return the candidate range of least squared error of each group, ``[g]`` each.

    One of ``lower`` and ``upper`` has the shape ``[g, C]`` for C candidates, the other ``[g, 1]``.
    """
    lower, upper = torch.broadcast_tensors(lower, upper)
    scale, zero_point = affine_parameters(lower, upper, bit_width, rounding=config.rounding)
    values = centers[:, None, :].expand(-1, lower.shape[1], -1)  # [g, C, K]
    fake = fake_quantize(
        values, scale[..., None], zero_point[..., None], bit_width, rounding=config.rounding
    )
    error = ((fake - values).square_() * counts[:, None, :]).sum(2)
    # Flipped, because argmin returns the first minimum, and the last candidate clips least.
    choice = (error.shape[1] - 1 - error.flip(1).argmin(1)).unsqueeze(1)
    return lower.gather(1, choice).squeeze(1), upper.gather(1, choice).squeeze(1)
