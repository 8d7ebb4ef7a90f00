"""Small models of every shape that a user's may have; classes of a module, so that they pickle."""

import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import (
    DNAConv,
    FAConv,
    GCN2Conv,
    GCNConv,
    GPSConv,
    MessagePassing,
    PointNetConv,
    PPFConv,
)


class Two(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x, edge_index):
        x = F.dropout(x, 0.3, self.training)
        return self.second(self.first(x, edge_index).tanh(), edge_index)


class GCNII(nn.Module):
    def __init__(self, conv=GCN2Conv):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(12, 8), nn.Linear(8, 3)
        self.conv1, self.conv2 = conv(8, 0.1), conv(8, 0.1)

    def forward(self, x, edge_index):
        x = x_0 = self.lin1(x).relu()
        x = self.conv1(x, x_0, edge_index).tanh()
        return self.lin2(self.conv2(x, x_0, edge_index))


class FAGCN(GCNII):
    def __init__(self):
        super().__init__(FAConv)


class PointCloud(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = PointNetConv(nn.Linear(15, 8)), GCNConv(8, 3)

    def forward(self, x, edge_index, pos):
        return self.conv2(self.conv1(x, pos, edge_index), edge_index)


class Surfaces(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = PPFConv(nn.Linear(16, 8)), GCNConv(8, 3)

    def forward(self, x, edge_index, pos, normal):
        return self.conv2(self.conv1(x, pos, normal, edge_index), edge_index)


class GPS(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(12, 8), nn.Linear(8, 3)
        self.conv = GPSConv(8, GCNConv(8, 8), heads=2, attn_type=attention)

    def forward(self, x, edge_index):
        return self.lin2(self.conv(self.lin1(x), edge_index))


class DNA(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin1, self.conv, self.lin2 = nn.Linear(12, 8), DNAConv(8, heads=2), nn.Linear(8, 3)

    def forward(self, x, edge_index):
        states = [self.lin1(x)]
        for _ in range(2):
            states.append(self.conv(torch.stack(states, dim=1), edge_index))
        return self.lin2(states[-1])


class Static(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = GCNConv(12, 8), GCNConv(8, 3)

    def forward(self, x, edge_index):
        x = torch.stack([x, x + 0.1])
        return self.conv2(self.conv1(x, edge_index), edge_index).mean(dim=0)


class OwnConv(MessagePassing):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(12, 3)

    def forward(self, edge_index, h):
        return self.propagate(edge_index, x=self.lin(h))


class OwnModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = OwnConv()

    def forward(self, x, edge_index):
        return self.conv(edge_index, h=x)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = GCNConv(12, 12)

    def forward(self, x, edge_index):
        return self.conv(self.conv(x, edge_index), edge_index)


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.conv = nn.Embedding(60, 8), GCNConv(8, 3)

    def forward(self, edge_index):
        return self.conv(self.table.weight, edge_index)


class Bucketed(nn.Module):
    """Takes the graph itself."""

    def __init__(self):
        super().__init__()
        self.conv = GCNConv(12, 3)

    def forward(self, data):
        return self.conv(data.x, data.edge_index)
