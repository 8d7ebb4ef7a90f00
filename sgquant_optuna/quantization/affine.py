"""The affine quantizer of the paper as pure functions, with its straight-through gradient.

With ``q`` bits and a range ``[lower, upper]`` (the paper's ``a_min`` and ``a_max``)::

    floor (the paper)   scale = (upper - lower) / 2**q        code = floor((x - lower) / scale)
    nearest (default)   scale = (upper - lower) / (2**q - 1)  code = round((x - lower) / scale)

Both clip the code to ``[0, 2**q - 1]``, and both dequantize by ``x' = scale * code + lower`` (the
paper's "rematching"). The zero point is ``lower``, the real value of code 0. Rounding to nearest
represents both ends of the range exactly and has half the error on average.

References:
    SGQuant (Feng et al., 2020, arXiv:2007.05100), the quantization function and "Finetuning".
    Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
    Computation", 2013, arXiv:1308.3432, for the straight-through estimator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgquant_optuna.quantization.quantizer_config import Rounding


def affine_parameters(
    lower: Tensor, upper: Tensor, bit_width: int | Tensor, *, rounding: Rounding = "nearest"
) -> tuple[Tensor, Tensor]:
    """Compute scale and zero point of ranges.

    A constant range (``upper == lower``) has scale 1, so that its only value has code 0.

    Args:
        lower:
            Lower ends of the ranges, any shape, in the unit of the features.
        upper:
            Upper ends of the ranges, same shape and unit.
        bit_width:
            Bits, 1-8 or 16, or a tensor of them that broadcasts against the ranges.
        rounding:
            ``"nearest"`` or the paper's ``"floor"``.

    Returns:
        Scale (> 0) and zero point (real value of code 0), both in the unit of the features.

    Reference:
        SGQuant (Feng et al., 2020, arXiv:2007.05100), the quantization function, with
        ``scale = (a_max - a_min) / 2**q``; rounding to nearest divides by ``2**q - 1``.
    """
    # SGQuant: scale = (a_max - a_min) / 2**q.
    steps = 2.0 ** torch.as_tensor(bit_width, dtype=lower.dtype, device=lower.device)
    if rounding == "nearest":
        steps = steps - 1
    scale = (upper - lower) / steps
    # A range whose scale underflows counts as constant.
    scale = torch.where(scale > torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))
    return scale, lower.expand_as(scale)


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bit_width: int | Tensor,
    *,
    rounding: Rounding = "nearest",
) -> Tensor:
    """Map real features to integer codes.

    Values outside the range, infinities included, get the nearest end code.

    Args:
        x:
            Features, ``[N, F]``.
        scale:
            Step between neighbouring codes, in the unit of ``x``; broadcasts against ``x``.
        zero_point:
            Real value of code 0, in the unit of ``x``; broadcasts against ``x``.
        bit_width:
            Bits, 1-8 or 16, or a tensor of them that broadcasts against ``x``.
        rounding:
            ``"nearest"`` or the paper's ``"floor"``.

    Returns:
        Codes, ``[N, F]``, each in ``[0, 2**bit_width - 1]``; uint8, or int32 above 8 bits.

    Raises:
        ValueError:
            If ``x`` holds NaN, which no code represents.

    Reference:
        SGQuant (Feng et al., 2020, arXiv:2007.05100), the quantization function:
        ``code = floor((a - a_min) / scale)``; the default here rounds to nearest.
    """
    if torch.isnan(x).any():
        raise ValueError("features to quantize: expected numbers, got NaN; clean the input first")
    widest = int(torch.as_tensor(bit_width).max()) if torch.as_tensor(bit_width).numel() else 8
    codes = _real_codes(x, scale, zero_point, bit_width, rounding)
    return codes.to(torch.uint8 if widest <= 8 else torch.int32)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Map integer codes back to real features.

    Args:
        codes:
            Codes, ``[N, F]``, integers.
        scale:
            Step between neighbouring codes, broadcasts against ``codes``.
        zero_point:
            Real value of code 0, broadcasts against ``codes``.

    Returns:
        Features ``scale * codes + zero_point``, ``[N, F]``, in the type of ``scale``.

    Reference:
        SGQuant (Feng et al., 2020, arXiv:2007.05100), "rematching".
    """
    return codes.to(scale.dtype) * scale + zero_point


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bit_width: int | Tensor,
    *,
    rounding: Rounding = "nearest",
) -> Tensor:
    """Quantize and dequantize features in one step, with gradient 1.

    NaN stays NaN, so that a diverged training is detected.

    Args:
        x:
            Features, ``[N, F]``.
        scale:
            Step between neighbouring codes, in the unit of ``x``; broadcasts against ``x``.
        zero_point:
            Real value of code 0, in the unit of ``x``; broadcasts against ``x``.
        bit_width:
            Bits, 1-8 or 16, or a tensor of them that broadcasts against ``x``.
        rounding:
            ``"nearest"`` or the paper's ``"floor"``.

    Returns:
        Features rounded to the real values of the codes, ``[N, F]``.

    References:
        SGQuant (Feng et al., 2020, arXiv:2007.05100), "Finetuning": the derivative of the
        quantized feature with respect to the feature is taken as 1, also outside the range.
        Bengio et al., 2013, arXiv:1308.3432: the straight-through estimator.
    """
    fake: Tensor = _StraightThrough.apply(x, scale, zero_point, bit_width, rounding)  # type: ignore[no-untyped-call]
    return fake


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: object,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bit_width: int | Tensor,
        rounding: Rounding,
    ) -> Tensor:
        # In place: allocating a matrix for each operation takes longer than the arithmetic.
        codes = _real_codes(x, scale, zero_point, bit_width, rounding)
        # SGQuant, "rematching": x' = scale * code + a_min.
        return codes.mul_(scale).add_(zero_point)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        # Straight-through (Bengio et al., 2013): dx'/dx = 1.
        return grad, None, None, None, None


def _real_codes(
    x: Tensor, scale: Tensor, zero_point: Tensor, bit_width: int | Tensor, rounding: Rounding
) -> Tensor:
    """Return the codes in the floating-point type of ``x``; NaN stays NaN."""
    largest = 2.0 ** torch.as_tensor(bit_width, dtype=scale.dtype, device=scale.device) - 1
    # SGQuant: code = floor((a - a_min) / scale); ours rounds to nearest by default.
    steps = (x - zero_point).div_(scale)
    codes = steps.round_() if rounding == "nearest" else steps.floor_()
    codes.clamp_(min=0)
    return torch.minimum(codes, largest, out=codes)
