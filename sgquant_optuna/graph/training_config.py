"""How long and how fast a model is trained, in plain values: no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained.

    Args:
        epochs:
            Upper limit of full-batch epochs.
        learning_rate:
            Step size of Adam.
        weight_decay:
            L2 penalty of Adam.
        patience:
            Epochs without a lower validation loss before it stops.

    Raises:
        ValueError:
            If a number is out of range.
    """

    epochs: int = 200
    learning_rate: float = 0.01
    weight_decay: float = 5e-4
    patience: int = 100

    def __post_init__(self) -> None:
        """Check every number."""
        if self.epochs < 0 or self.patience < 1:
            raise ValueError(
                f"training: expected epochs >= 0 and patience >= 1, got {self.epochs} and "
                f"{self.patience}"
            )
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError(
                f"training: expected learning_rate > 0 and weight_decay >= 0, got "
                f"{self.learning_rate} and {self.weight_decay}"
            )

    def with_epochs(self, epochs: int) -> TrainingConfig:
        """Return the same settings with another limit of epochs."""
        return replace(self, epochs=epochs)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, ready for JSON."""
        return asdict(self)


FINETUNING = TrainingConfig(epochs=30, learning_rate=0.002, patience=15)
"""Finetuning of a quantized copy in each trial: a small rate, because it starts trained."""

PaperModel = Literal["gcn", "agnn", "gat"]

PAPER_TRAINING: dict[PaperModel, TrainingConfig] = {
    "gcn": TrainingConfig(),
    "agnn": TrainingConfig(),
    "gat": TrainingConfig(learning_rate=0.005),
}
"""How each model of the paper is usually trained at full precision, by its name."""
