"""Graphs of several node types, and models of them, for tests."""

import torch
from torch import nn
from torch_geometric.data import HeteroData
from torch_geometric.nn import GATConv, HeteroConv, HGTConv, Linear, SAGEConv, to_hetero


def five_nodes():
    """Three papers and two authors: p0 and p1 are cited or written as the edges say."""
    data = HeteroData()
    generator = torch.Generator().manual_seed(0)
    data["paper"].x = torch.randn(3, 4, generator=generator)
    data["author"].x = torch.randn(2, 5, generator=generator)
    data["author", "writes", "paper"].edge_index = torch.tensor([[0, 1, 1], [0, 1, 2]])
    data["paper", "of", "author"].edge_index = torch.tensor([[0, 1, 2], [0, 1, 1]])
    data["paper", "cites", "paper"].edge_index = torch.tensor([[0], [1]])
    data["paper"].y = torch.tensor([0, 1, 0])
    for at, name in enumerate(("train_mask", "val_mask", "test_mask")):
        data["paper"][name] = torch.arange(3) == at
    return data


def library(papers=80, authors=50, venues=6):
    """Papers whose class is that of their authors' features; no relation leaves a venue."""
    generator = torch.Generator().manual_seed(0)

    def drawn(high, count):
        return torch.randint(high, (count,), generator=generator)

    data = HeteroData()
    for name, count, width in (("paper", papers, 6), ("author", authors, 5), ("venue", venues, 3)):
        data[name].x = torch.randn(count, width, generator=generator)
    writes = torch.stack([drawn(authors, 3 * papers), drawn(papers, 3 * papers)])
    data["author", "writes", "paper"].edge_index = writes
    data["paper", "of", "author"].edge_index = writes.flip(0)
    data["paper", "cites", "paper"].edge_index = torch.stack(
        [drawn(papers, 100), drawn(papers, 100)]
    )
    data["paper", "in", "venue"].edge_index = torch.stack(
        [torch.arange(papers), drawn(venues, papers)]
    )
    summed = torch.zeros(papers).index_add_(0, writes[1], data["author"].x[writes[0], 0])
    data["paper"].y = (summed + data["paper"].x[:, 0] > 0).long()
    at = torch.arange(papers) % 4
    data["paper"].update({"train_mask": at < 2, "val_mask": at == 2, "test_mask": at == 3})
    return data


class Sage(nn.Module):
    def __init__(self, hidden=6, outputs=2):
        super().__init__()
        self.conv1 = SAGEConv((-1, -1), hidden)
        self.conv2 = SAGEConv((-1, -1), outputs)

    def forward(self, x, edge_index):
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


def transformed(data, hidden=6, outputs=2):
    return _with_sizes(to_hetero(Sage(hidden, outputs), data.metadata()), data)


class Gat(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = GATConv((-1, -1), 4, heads=2, add_self_loops=False)
        self.lin1 = Linear(-1, 8)
        self.conv2 = GATConv((-1, -1), 2, add_self_loops=False)

    def forward(self, x, edge_index):
        x = (self.conv1(x, edge_index) + self.lin1(x)).relu()
        return self.conv2(x, edge_index)


def attending(data):
    return _with_sizes(to_hetero(Gat(), data.metadata()), data)


class ByRelation(nn.Module):
    def __init__(self, data, hidden=6, outputs=2):
        super().__init__()
        self.conv1, self.conv2 = (
            HeteroConv({key: SAGEConv((-1, -1), width) for key in data.edge_types}, aggr="sum")
            for width in (hidden, outputs)
        )

    def forward(self, x_dict, edge_index_dict):
        x_dict = {name: x.relu() for name, x in self.conv1(x_dict, edge_index_dict).items()}
        return self.conv2(x_dict, edge_index_dict)["paper"]


def by_relation(data):
    return _with_sizes(ByRelation(data), data)


class Transformer(nn.Module):
    def __init__(self, data, hidden=8, outputs=2):
        super().__init__()
        self.inputs = nn.ModuleDict({name: Linear(-1, hidden) for name in data.node_types})
        self.conv = HGTConv(hidden, hidden, data.metadata(), heads=2)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x_dict, edge_index_dict):
        x_dict = {name: self.inputs[name](x).relu() for name, x in x_dict.items()}
        return self.head(self.conv(x_dict, edge_index_dict)["paper"])


def transformer(data):
    return _with_sizes(Transformer(data), data)


def _with_sizes(model, data):
    torch.manual_seed(0)
    with torch.no_grad():
        model(data.x_dict, data.edge_index_dict)
    return model.eval()
