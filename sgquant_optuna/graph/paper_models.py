"""The three models of the paper for node classification, built of PyG's convolutions.

Reference:
    SGQuant (Feng et al., 2020, arXiv:2007.05100), Table I.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import AGNNConv, GATConv, GCNConv


class GCN(nn.Module):
    """Two graph convolutions.

    A layer computes ``A_norm X W`` with ``A_norm = D^(-1/2) (A + I) D^(-1/2)``, where ``D`` holds
    the degrees of ``A + I``.

    Args:
        in_channels:
            Number of input features F.
        out_channels:
            Number of classes C.
        hidden_channels:
            Number of hidden features.
        dropout:
            Probability of dropout, before each convolution.

    Reference:
        Kipf and Welling, "Semi-Supervised Classification with Graph Convolutional Networks",
        2017.
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

    A propagation computes ``P H`` with ``P_ij = softmax_j(beta * cos(H_i, H_j))`` over the
    neighbours ``j`` of node ``i`` and itself.

    Args:
        in_channels:
            Number of input features F.
        out_channels:
            Number of classes C.
        hidden_channels:
            Number of hidden features.
        num_layers:
            Number of layers, with both linear ones: 4 means two propagations. The paper's memory
            figures, ``N * (F + 3 * hidden + C)``, hold for 4.
        dropout:
            Probability of dropout, before each linear layer.

    Raises:
        ValueError:
            If ``num_layers`` is below 3.

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
        # beta of the first propagation stays 1, as in PyG's example and the paper's code.
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

    The attention of an edge is ``softmax_j(LeakyReLU(a . [W x_i || W x_j]))`` over the neighbours
    ``j`` of node ``i`` and itself.

    Args:
        in_channels:
            Number of input features F.
        out_channels:
            Number of classes C.
        hidden_channels:
            Number of hidden features, all heads together.
        heads:
            Number of attention heads H of the first layer; the second layer has one.
        dropout:
            Probability of dropout, before each layer and on the attention.

    Raises:
        ValueError:
            If ``hidden_channels`` is not a multiple of ``heads``.

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


MODELS: dict[str, Callable[..., nn.Module]] = {"gcn": GCN, "agnn": AGNN, "gat": GAT}
"""The models of the paper by name, called with ``in_channels`` and ``out_channels``."""


def make_model(name: str, in_channels: int, out_channels: int, *, seed: int = 0) -> nn.Module:
    """Build a model of the paper with seeded initial weights.

    Args:
        name:
            Name of the model: ``"gcn"``, ``"agnn"`` or ``"gat"``.
        in_channels:
            Number of input features F.
        out_channels:
            Number of classes C.
        seed:
            Seed of the initial weights. The global random state is restored.

    Raises:
        ValueError:
            If there is no such model.
    """
    if name not in MODELS:
        raise ValueError(f"model: expected one of {', '.join(MODELS)}, got {name!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](in_channels, out_channels)


def architecture(model: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """Return name and constructor arguments of a model of the paper, otherwise ``None``."""
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
