"""How a quantizer rounds and where its range comes from, in plain values: no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Rounding = Literal["nearest", "floor"]
RangeEstimator = Literal["least_squares", "minmax", "percentile"]
Axis = Literal["tensor", "bucket", "column", "row"]


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """Settings of every quantizer of a model.

    The defaults are what measures best: with the paper's range a single outlier spends all codes,
    and one bit on PubMed's TF-IDF features costs half of the accuracy; with an end chosen for the
    least squared error it costs nothing measurable (``benchmarks/ranges.py``).

    Args:
        rounding:
            ``"nearest"`` or the paper's ``"floor"``.
        range_estimator:
            ``"least_squares"`` chooses the range of each bit width for the least squared error,
            ``"minmax"`` is the paper's, ``"percentile"`` cuts both tails.
        axis:
            What shares a range: the whole ``"tensor"`` (the paper's), a degree ``"bucket"``, a
            ``"column"`` or a ``"row"``. Each range costs 8 bytes in the honest accounting.
            Attention always has one range.
        percentile:
            Upper percentile kept by ``"percentile"``, in percent; the lower is its mirror.

    Raises:
        ValueError:
            If a setting is not one of those.
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
        """Return the paper's settings: floor, minimum and maximum of the whole tensor."""
        return cls(rounding="floor", range_estimator="minmax", axis="tensor")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, ready for JSON."""
        return asdict(self)
