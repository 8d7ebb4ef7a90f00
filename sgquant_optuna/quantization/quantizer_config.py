"""Settings of a quantizer: rounding, range estimator and axis. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Rounding = Literal["nearest", "floor"]
RangeEstimator = Literal["least_squares", "minmax", "percentile"]
Axis = Literal["tensor", "bucket", "column", "row"]


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """Settings of every quantizer of a model.

    The defaults have the best measured accuracy (``benchmarks/ranges.py``). With the paper's
    range, one outlier leaves most codes unused, and one bit for PubMed's TF-IDF features loses
    half of the accuracy. With the range of least squared error, the loss is not measurable.

    Args:
        rounding:
            ``"nearest"``, or ``"floor"`` as in the paper.
        range_estimator:
            ``"least_squares"``: for each bit width, the range of least squared error.
            ``"minmax"``: minimum to maximum, as in the paper. ``"percentile"``: without both
            tails.
        axis:
            Values that share a range: the whole ``"tensor"`` (as in the paper), a degree
            ``"bucket"``, a ``"column"`` or a ``"row"``. Each range takes 8 bytes in the honest
            accounting. Attention always has one range.
        percentile:
            Upper end of the range of ``"percentile"``, in percent; the lower end is 100 minus it.

    Raises:
        ValueError:
            If a setting is not one of these values, or the percentile is not in (50, 100].

    Reference:
        SGQuant (Feng et al., 2020, arXiv:2007.05100), the quantization function.
    """

    rounding: Rounding = "nearest"
    range_estimator: RangeEstimator = "least_squares"
    axis: Axis = "tensor"
    percentile: float = 99.9

    def __post_init__(self) -> None:
        """Check every setting."""
        for name, choices in (
            ("rounding", get_args(Rounding)),
            ("range_estimator", get_args(RangeEstimator)),
            ("axis", get_args(Axis)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {choices}, got {getattr(self, name)!r}")
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile: expected in (50, 100], got {self.percentile}")

    @classmethod
    def paper(cls) -> QuantizerConfig:
        """Return the paper's settings: floor, and minimum to maximum of the whole tensor."""
        return cls(rounding="floor", range_estimator="minmax", axis="tensor")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dictionary for JSON."""
        return asdict(self)
