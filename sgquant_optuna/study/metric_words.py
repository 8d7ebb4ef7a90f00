"""How values and drops of the metric of a task are written, and what counts as much of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

_PERCENT = "%"
_DIGITS = 4  # of a value that is no percentage


@dataclass(frozen=True)
class MetricWords:
    """Name, unit and direction of a metric, as a study keeps them.

    Args:
        name:
            Name of the metric.
        unit:
            Unit of its values: ``"%"``, another one, or none.
        higher_is_better:
            Whether a larger value is better.
    """

    name: str = "accuracy"
    unit: str = _PERCENT
    higher_is_better: bool = True

    @property
    def is_percentage(self) -> bool:
        """Whether its values are shares from 0 to 100."""
        return self.unit == _PERCENT

    @property
    def drop_unit(self) -> str:
        """Unit of a difference of two values; empty without one."""
        return "points" if self.is_percentage else self.unit

    @property
    def worse_side(self) -> str:
        """Where worse values are: ``"below"`` or ``"above"``."""
        return "below" if self.higher_is_better else "above"

    def scale(self, full_precision: float) -> float:
        """Return what counts as much of the metric: 100 of a percentage, else full precision.

        A metric in another unit then leads to the same decisions. Of a value of 0, which has no
        scale, it is 1.
        """
        return 100.0 if self.is_percentage else abs(full_precision) or 1.0

    def value(self, value: float) -> str:
        """Return a value with its unit, such as ``"81.20 %"``."""
        return f"{self.digits(value)} {self.unit}".rstrip()

    def drop(self, drop: float) -> str:
        """Return a difference of two values, such as ``"0.30 points"``."""
        return f"{self.digits(drop)} {self.drop_unit}".rstrip()

    def limit(self, drop: float) -> str:
        """Return a limit as it was given, such as ``"0.5 points"``."""
        return f"{drop:,.10g} {self.drop_unit}".rstrip()

    def labelled(self, text: str) -> str:
        """Return a text for drops with their unit, such as ``"expected drop in points"``."""
        return f"{text} in {self.drop_unit}" if self.drop_unit else text

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def digits(self, value: float) -> str:
        """Return a value or a difference without its unit, such as ``"0.30"``."""
        if self.is_percentage:
            return f"{value:.2f}"
        if 10 ** (_DIGITS - 1) <= abs(value) < 1e12:  # without an exponent, as in 4e+04
            return f"{value:,.0f}"
        return f"{value:.{_DIGITS}g}"
