"""What one trial measured, as its user attributes hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from sgquant_optuna.quantization.sites import BitWidths


def is_feasible(accuracy_drop: float, max_drop: float) -> bool:
    """Tell whether a drop is within a limit, both in percentage points."""
    return accuracy_drop <= max_drop


@dataclass(frozen=True, kw_only=True)
class TrialScore:
    """What ranks a trial: all that is read of it where there are thousands.

    Args:
        memory_bytes:
            Memory by the honest accounting, in bytes.
        accuracy_drop:
            Loss of validation accuracy against full precision, in percentage points.
        saving:
            Dense float32 bytes divided by the honest bytes.
    """

    memory_bytes: float
    accuracy_drop: float
    saving: float

    def violation(self, max_drop: float) -> float:
        """Return by how many percentage points the drop is above a limit."""
        return self.accuracy_drop - max_drop

    def is_feasible(self, max_drop: float) -> bool:
        """Tell whether the drop is within a limit, in percentage points."""
        return is_feasible(self.accuracy_drop, max_drop)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the user attributes that hold it."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def of(cls, attrs: Mapping[str, Any]) -> Self | None:
        """Read it from the user attributes of a trial; ``None`` if our objective wrote none."""
        if not all(name in attrs for name in cls.names()):
            return None
        return cls(**{name: attrs[name] for name in cls.names()})


@dataclass(frozen=True, kw_only=True, repr=False)
class TrialResult(TrialScore):
    """All that a trial measured.

    Args:
        accuracy:
            Mean validation accuracy of its finetunings, in percent.
        paper_memory_bytes:
            Memory by the paper's accounting, in bytes.
        paper_saving:
            Dense float32 bytes divided by the paper's bytes.
        average_bits:
            Stored bits for each value, by the paper's accounting.
        bit_widths:
            Width of every site.
        seconds:
            Wall time of the trial.
    """

    accuracy: float
    paper_memory_bytes: float
    paper_saving: float
    average_bits: float
    bit_widths: BitWidths
    seconds: float

    def __repr__(self) -> str:
        """Return what matters in a line; the widths alone may fill a screen."""
        return (
            f"<TrialResult: saving {self.saving:.1f}x, drop {self.accuracy_drop:.2f} points, "
            f"accuracy {self.accuracy:.2f} %, {self.memory_bytes:,.0f} bytes, "
            f"{len(self.bit_widths)} bit widths>"
        )

    @classmethod
    def of(cls, attrs: Mapping[str, Any]) -> Self | None:
        """Read it from the user attributes of a trial; ``None`` if our objective wrote none."""
        if "bit_widths" not in attrs:
            return None
        return super().of({**attrs, "bit_widths": BitWidths.from_dict(attrs["bit_widths"])})

    def to_attrs(self) -> dict[str, Any]:
        """Return the user attributes that hold it, ready for JSON."""
        values = {name: getattr(self, name) for name in self.names()}
        return {**values, "bit_widths": self.bit_widths.to_dict()}
