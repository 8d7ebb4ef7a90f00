"""How values and drops of the metric of a task are written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

_PERCENT = "%"


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

    def value(self, value: float) -> str:
        """Return a value with its unit, such as ``"81.20 %"``."""
        return f"{self.digits(value)} {self.unit}".rstrip()

    def drop(self, drop: float) -> str:
        """Return a difference of two values, such as ``"0.30 points"``."""
        return f"{self.digits(drop)} {self._drop_unit}".rstrip()

    def limit(self, drop: float) -> str:
        """Return a limit as it was given, such as ``"0.5 points"``."""
        return f"{drop:g} {self._drop_unit}".rstrip()

    @property
    def _drop_unit(self) -> str:
        return "points" if self.unit == _PERCENT else self.unit

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def digits(self, value: float) -> str:
        """Return a value or a difference without its unit, such as ``"0.30"``."""
        return f"{value:.2f}" if self.unit == _PERCENT else f"{value:.4g}"
