"""The three models of the paper, from PyG's convolutions, for node classification.

Reference: SGQuant, Table I.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import AGNNConv, GATConv, GCNConv

from sgquant_optuna.graph.training_config import PAPER_TRAINING, TrainingConfig


class GCN(nn.Module):
    """Two graph convolutions.

    Args:
        in_channels:
            Input features F.
        out_channels:
            Classes C.
        hidden_channels:
            Width of the hidden layer.
        dropout:
            Probability, before each convolution.

    Reference:
        Kipf and Welling, "Semi-Supervised Classification with Graph Convolutional Networks", 2017.
    """

    def __init__(
        self, in_channels: int, out_channels: int, hidden_channels: int = 32, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.conv1 = GCNConv(in_channels, hidden_channels)
        self.conv2 = GCNConv(hidden_channels, out_channels)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return class scores, ``[N, C]``."""
        x = F.dropout(x, self.dropout, self.training)
        x = self.conv1(x, edge_index).relu()
        x = F.dropout(x, self.dropout, self.training)
        scores: Tensor = self.conv2(x, edge_index)
        return scores


class AGNN(nn.Module):
    """A linear layer, attention propagations of the hidden features, and a linear layer.

    Args:
        in_channels:
            Input features F.
        out_channels:
            Classes C.
        hidden_channels:
            Width of the hidden features.
        num_layers:
            All layers, the two linear ones included: 4 are two propagations. The paper's memory
            figures, ``N * (F + 3 * hidden + C)``, hold for this count.
        dropout:
            Probability, before each linear layer.

    Reference:
        Thekumparampil et al., "Attention-based Graph Neural Network for Semi-supervised
        Learning", 2018.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 16,
        num_layers: int = 4,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if num_layers < 3:
            raise ValueError(f"num_layers: expected at least 3, got {num_layers}")
        self.dropout = dropout
        self.lin1 = nn.Linear(in_channels, hidden_channels)
        # The first propagation's temperature stays 1, as in PyG's example and the paper's code.
        self.props = nn.ModuleList(
            AGNNConv(requires_grad=index > 0) for index in range(num_layers - 2)
        )
        self.lin2 = nn.Linear(hidden_channels, out_channels)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return class scores, ``[N, C]``."""
        x = F.dropout(x, self.dropout, self.training)
        x = self.lin1(x).relu()
        for prop in self.props:
            x = prop(x, edge_index)
        x = F.dropout(x, self.dropout, self.training)
        scores: Tensor = self.lin2(x)
        return scores


class GAT(nn.Module):
    """Two graph attention layers.

    Args:
        in_channels:
            Input features F.
        out_channels:
            Classes C.
        hidden_channels:
            Width of the hidden features, all heads together.
        heads:
            Attention heads H of the first layer; the second has one.
        dropout:
            Probability, before each layer and on the attention.

    Reference:
        Veličković et al., "Graph Attention Networks", 2018.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 256,
        heads: int = 8,
        dropout: float = 0.6,
    ) -> None:
        super().__init__()
        if hidden_channels % heads:
            raise ValueError(
                f"hidden_channels: expected a multiple of {heads} heads, got {hidden_channels}"
            )
        self.dropout = dropout
        self.conv1 = GATConv(in_channels, hidden_channels // heads, heads=heads, dropout=dropout)
        self.conv2 = GATConv(hidden_channels, out_channels, heads=1, dropout=dropout)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return class scores, ``[N, C]``."""
        x = F.dropout(x, self.dropout, self.training)
        x = F.elu(self.conv1(x, edge_index))
        x = F.dropout(x, self.dropout, self.training)
        scores: Tensor = self.conv2(x, edge_index)
        return scores


@dataclass(frozen=True)
class ModelRecipe:
    """A model of the paper with the settings that it is usually trained with."""

    build: Callable[..., nn.Module]
    training: TrainingConfig


MODELS = {
    "gcn": ModelRecipe(GCN, PAPER_TRAINING["gcn"]),
    "agnn": ModelRecipe(AGNN, PAPER_TRAINING["agnn"]),
    "gat": ModelRecipe(GAT, PAPER_TRAINING["gat"]),
}
"""The models of the paper, by name."""


def make_model(name: str, in_channels: int, out_channels: int, *, seed: int = 0) -> nn.Module:
    """Build ``"gcn"``, ``"agnn"`` or ``"gat"`` with seeded weights.

    Args:
        name:
            Which model.
        in_channels:
            Input features F.
        out_channels:
            Classes C.
        seed:
            Of the first weights. The global random state is left as it was.

    Raises:
        ValueError:
            If there is no such model.
    """
    if name not in MODELS:
        raise ValueError(f"model: expected one of {', '.join(MODELS)}, got {name!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name].build(in_channels, out_channels)


def architecture(model: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """Return name and constructor arguments of a model of the paper, or ``None`` for another."""
    if type(model) is GCN:
        sizes = {
            "in_channels": model.conv1.in_channels,
            "out_channels": model.conv2.out_channels,
            "hidden_channels": model.conv1.out_channels,
        }
        return "gcn", {**sizes, "dropout": model.dropout}
    if type(model) is AGNN:
        sizes = {
            "in_channels": model.lin1.in_features,
            "out_channels": model.lin2.out_features,
            "hidden_channels": model.lin1.out_features,
            "num_layers": len(model.props) + 2,
        }
        return "agnn", {**sizes, "dropout": model.dropout}
    if type(model) is GAT:
        sizes = {
            "in_channels": model.conv1.in_channels,
            "out_channels": model.conv2.out_channels,
            "hidden_channels": model.conv1.out_channels * model.conv1.heads,
            "heads": model.conv1.heads,
        }
        return "gat", {**sizes, "dropout": model.dropout}
    return None
