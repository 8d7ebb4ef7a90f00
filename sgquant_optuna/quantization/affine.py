"""The linear quantizer of the paper as pure functions, with its straight-through gradient.

With ``q`` bits over a range ``[lower, upper]``, and zero point the real value of code 0::

    floor (the paper)   scale = (upper - lower) / 2**q        code = floor((x - lower) / scale)
    nearest (default)   scale = (upper - lower) / (2**q - 1)  code = round((x - lower) / scale)

Both clip the code to ``0 ... 2**q - 1``, and both come back by ``x' = scale * code + lower``.
Nearest rounding represents both ends of the range exactly and has half the error on average.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgquant_optuna.quantization.quantizer_config import Rounding


def affine_parameters(
    lower: Tensor, upper: Tensor, bit_width: int | Tensor, *, rounding: Rounding = "nearest"
) -> tuple[Tensor, Tensor]:
    """Turn ranges into scale and zero point.

    A constant range (``upper == lower``) gets scale 1, so that its one value is code 0.

    Args:
        lower:
            Lower ends, any shape.
        upper:
            Upper ends, same shape.
        bit_width:
            Bits, 1-8 or 16, or a tensor of them that broadcasts against the ranges.
        rounding:
            ``"nearest"`` or the paper's ``"floor"``.

    Returns:
        Scale (> 0) and zero point, both in the unit of the features.

    Reference:
        SGQuant, equation of the quantization function: ``scale = (a_max - a_min) / 2**q``.
    """
    steps = 2.0 ** torch.as_tensor(bit_width, dtype=lower.dtype, device=lower.device)
    if rounding == "nearest":
        steps = steps - 1
    scale = (upper - lower) / steps
    # A range so narrow that its step underflows is constant for float32.
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

    Values outside the calibrated range take the nearest end code, infinities included.

    Args:
        x:
            Features, ``[N, F]``.
        scale:
            Step between neighbouring codes, broadcasts against ``x``, in its unit.
        zero_point:
            Real value of code 0, broadcasts against ``x``.
        bit_width:
            Bits, 1-8 or 16, or a tensor of them that broadcasts against ``x``.
        rounding:
            ``"nearest"`` or the paper's ``"floor"``.

    Returns:
        Codes, ``[N, F]``, each in ``[0, 2**bit_width - 1]``; uint8, or int32 above 8 bits.

    Raises:
        ValueError:
            If ``x`` holds NaN, which no code can stand for.
    """
    if torch.isnan(x).any():
        raise ValueError("features to quantize: expected numbers, got NaN; clean the input first")
    widest = int(torch.as_tensor(bit_width).max()) if torch.as_tensor(bit_width).numel() else 8
    codes = _real_codes(x, scale, zero_point, bit_width, rounding)
    return codes.to(torch.uint8 if widest <= 8 else torch.int32)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Bring codes back to reals, ``scale * codes + zero_point`` (the paper's "rematching")."""
    return codes.to(scale.dtype) * scale + zero_point


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bit_width: int | Tensor,
    *,
    rounding: Rounding = "nearest",
) -> Tensor:
    """Quantize and bring back in one, with the gradient passed through unchanged.

    NaN stays NaN, so that a diverged training is seen rather than hidden.

    Args:
        x:
            Features, ``[N, F]``.
        scale:
            Step between neighbouring codes, broadcasts against ``x``.
        zero_point:
            Real value of code 0, broadcasts against ``x``.
        bit_width:
            Bits, 1-8 or 16, or a tensor of them that broadcasts against ``x``.
        rounding:
            ``"nearest"`` or the paper's ``"floor"``.

    Returns:
        Features on the grid of the codes, ``[N, F]``.

    Reference:
        SGQuant, "Finetuning": the straight-through estimator takes the derivative of the
        quantized feature by the feature as 1, also outside the range.
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
        # In place: a fresh matrix for each step would take longer than the arithmetic.
        codes = _real_codes(x, scale, zero_point, bit_width, rounding)
        return codes.mul_(scale).add_(zero_point)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return grad, None, None, None, None


def _real_codes(
    x: Tensor, scale: Tensor, zero_point: Tensor, bit_width: int | Tensor, rounding: Rounding
) -> Tensor:
    top = 2.0 ** torch.as_tensor(bit_width, dtype=scale.dtype, device=scale.device) - 1
    steps = (x - zero_point).div_(scale)
    codes = steps.round_() if rounding == "nearest" else steps.floor_()
    codes.clamp_(min=0)
    return torch.minimum(codes, top, out=codes)
