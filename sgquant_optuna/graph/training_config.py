"""Settings of a training. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of a full-batch training with Adam and early stopping.

    Args:
        epochs:
            Largest number of full-batch epochs.
        learning_rate:
            Learning rate of Adam.
        weight_decay:
            L2 penalty of Adam.
        patience:
            Number of epochs without a lower validation loss after which training stops.

    Raises:
        ValueError:
            If ``epochs`` or ``weight_decay`` is negative, ``learning_rate`` is not positive, or
            ``patience`` is below 1.
    """

    epochs: int = 200
    learning_rate: float = 0.01
    weight_decay: float = 5e-4
    patience: int = 100

    def __post_init__(self) -> None:
        """Check that every number is in its range."""
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
        """Return the same settings with another largest number of epochs."""
        return replace(self, epochs=epochs)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dictionary for JSON."""
        return asdict(self)


FINETUNING = TrainingConfig(epochs=30, learning_rate=0.002, patience=15)
"""Finetuning in each trial; the learning rate is small because the model is trained already."""

PaperModel = Literal["gcn", "agnn", "gat"]

PAPER_TRAINING: dict[PaperModel, TrainingConfig] = {
    "gcn": TrainingConfig(),
    "agnn": TrainingConfig(),
    "gat": TrainingConfig(learning_rate=0.005),
}
"""Usual full-precision training of each model of the paper, by its name."""
