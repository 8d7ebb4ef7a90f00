"""Settings of a training. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

DecayedLayers = Literal["all", "first"]


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
        decayed_layers:
            Layers with this penalty: ``"all"``, or the ``"first"`` alone, as in Kipf and Welling,
            "Semi-Supervised Classification with Graph Convolutional Networks", 2017, section 5.2.
        patience:
            Number of epochs without a lower validation loss after which training stops.

    Raises:
        ValueError:
            If ``epochs`` or ``weight_decay`` is negative, ``learning_rate`` is not positive,
            ``patience`` is below 1, or ``decayed_layers`` is neither ``"all"`` nor ``"first"``.
    """

    epochs: int = 200
    learning_rate: float = 0.01
    weight_decay: float = 5e-4
    decayed_layers: DecayedLayers = "all"
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
        if self.decayed_layers not in get_args(DecayedLayers):
            raise ValueError(
                f"training: expected decayed_layers all or first, got {self.decayed_layers!r}"
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

PAPER_MODELS: tuple[PaperModel, ...] = get_args(PaperModel)
"""Names of the models of the paper."""


@dataclass(frozen=True, kw_only=True)
class PaperTraining:
    """How a model of the paper is trained on a data set.

    Args:
        normalize_features:
            Whether each row of the features is divided by its sum.
        training:
            Settings of the full-precision training.
    """

    normalize_features: bool
    training: TrainingConfig


OWN_TRAINING = PaperTraining(normalize_features=False, training=TrainingConfig())
"""How a user's own model is trained by default."""

_ELSEWHERE: dict[str, PaperTraining] = {
    "gcn": PaperTraining(normalize_features=False, training=TrainingConfig()),
    "agnn": PaperTraining(normalize_features=False, training=TrainingConfig()),
    "gat": PaperTraining(normalize_features=False, training=TrainingConfig(learning_rate=0.005)),
}

# Chosen by loss and accuracy on the validation nodes alone; docs/full-precision.md has the test.
_CHOSEN: dict[tuple[str, str], PaperTraining] = {
    ("gcn", "Cora"): PaperTraining(
        normalize_features=True, training=TrainingConfig(epochs=500, weight_decay=1e-3)
    ),
    ("gcn", "CiteSeer"): PaperTraining(
        normalize_features=True, training=TrainingConfig(epochs=500, weight_decay=1e-3)
    ),
    ("gcn", "PubMed"): PaperTraining(normalize_features=True, training=TrainingConfig()),
    # A row of Computers has 267 words on average: at the usual rate, a step overshoots.
    ("gcn", "Computers"): PaperTraining(
        normalize_features=False, training=TrainingConfig(learning_rate=0.003)
    ),
    ("agnn", "Cora"): PaperTraining(normalize_features=True, training=TrainingConfig(epochs=500)),
    ("agnn", "CiteSeer"): PaperTraining(
        normalize_features=True, training=TrainingConfig(epochs=500, weight_decay=1e-3)
    ),
    ("gat", "Cora"): PaperTraining(
        normalize_features=True, training=TrainingConfig(epochs=300, learning_rate=0.005)
    ),
    ("gat", "CiteSeer"): PaperTraining(
        normalize_features=True,
        training=TrainingConfig(epochs=500, learning_rate=0.005, weight_decay=2e-3),
    ),
    ("gat", "PubMed"): PaperTraining(
        normalize_features=True, training=TrainingConfig(learning_rate=0.005)
    ),
}


def paper_training(model: str, dataset: str) -> PaperTraining:
    """Return how a model of the paper is trained on a data set by default.

    Args:
        model:
            Name of the model: ``"gcn"``, ``"agnn"`` or ``"gat"``.
        dataset:
            Name of the graph, in upper or lower case.

    Returns:
        Settings chosen on the validation nodes of its graphs, and usual ones elsewhere.

    Raises:
        ValueError:
            If there is no such model.
    """
    if model not in PAPER_MODELS:
        raise ValueError(f"model: expected one of {', '.join(PAPER_MODELS)}, got {model!r}")
    chosen = {(name, graph.lower()): found for (name, graph), found in _CHOSEN.items()}
    return chosen.get((model, dataset.lower()), _ELSEWHERE[model])
