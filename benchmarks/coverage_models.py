"""The models of ``coverage.py``: each convolution of PyG with constructor arguments, and more.

Not a benchmark itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import Sequential as GraphSequential
from torch_geometric.nn import conv as convs
from torch_geometric.nn import models

from sgquant_optuna.graph.paper_models import AGNN, GAT, GCN

Make = Callable[[], nn.Module]
Call = Callable[..., Tensor]


class Net(nn.Module):
    """Two convolutions of one kind and a linear layer, called with ``x`` and ``edge_index``."""

    def __init__(self, make: Callable[[int, int], nn.Module], width: int = 8) -> None:
        super().__init__()
        self.conv1, self.conv2 = make(12, width), make(width, width)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return class scores, ``[N, C]``."""
        return self.out(self.conv2(self.conv1(x, edge_index).tanh(), edge_index).tanh())


class GraphNet(Net):
    """The same, with convolutions that need other columns of the graph."""

    def __init__(self, make: Callable[[int, int], nn.Module], call: Call, width: int = 8) -> None:
        super().__init__(make, width)
        self.call = call

    def forward(self, data: Data) -> Tensor:
        """Return class scores, ``[N, C]``."""
        x = self.call(self.conv1, data.x, data).tanh()
        return self.out(self.call(self.conv2, x, data).tanh())


def _plain(make: Callable[[int, int], nn.Module], width: int = 8) -> Make:
    return lambda: Net(make, width)


def _called(make: Callable[[int, int], nn.Module], call: Call, width: int = 8) -> Make:
    return lambda: GraphNet(make, call, width)


# Functions of a module, so that models with them can be copied and pickled.
def with_edge_attr(conv: nn.Module, x: Tensor, data: Data) -> Tensor:
    return conv(x, data.edge_index, data.edge_attr)


def with_edge_type(conv: nn.Module, x: Tensor, data: Data) -> Tensor:
    return conv(x, data.edge_index, data.edge_type)


def with_types(conv: nn.Module, x: Tensor, data: Data) -> Tensor:
    return conv(x, data.edge_index, data.node_type, data.edge_type, data.edge_attr)


def with_position(conv: nn.Module, x: Tensor, data: Data) -> Tensor:
    return conv(x, data.pos, data.edge_index)


def with_normal(conv: nn.Module, x: Tensor, data: Data) -> Tensor:
    return conv(x, data.pos, data.normal, data.edge_index)


def with_first(conv: nn.Module, x: Tensor, data: Data) -> Tensor:
    return conv(x, data.x, data.edge_index)


def without_edges(conv: nn.Module, x: Tensor, data: Data) -> Tensor:
    return conv(x)


def with_position_alone(conv: nn.Module, x: Tensor, data: Data) -> Tensor:
    return conv(x, data.pos)


def with_signs(conv: nn.Module, x: Tensor, data: Data) -> Tensor:
    return conv(x, data.edge_index, data.edge_index.flip(0))


def first_of_two(conv: nn.Module, x: Tensor, data: Data) -> Tensor:
    return conv(x, data.edge_index)[0]


def stacked(conv: nn.Module, x: Tensor, data: Data) -> Tensor:
    return conv(torch.stack([x, x.tanh()], dim=1), data.edge_index)


def as_faces(conv: nn.Module, x: Tensor, data: Data) -> Tensor:
    # Each edge of a mesh has four neighbours.
    nodes = torch.arange(60)
    near = [torch.stack([(nodes + step) % 60, nodes]) for step in (1, 2, 3, 4)]
    return conv(x, torch.stack(near, dim=2).reshape(2, -1))


def _mlp(i: int, o: int) -> nn.Module:
    return nn.Sequential(nn.Linear(i, o), nn.ReLU(), nn.Linear(o, o))


def _rgat(i: int, o: int) -> nn.Module:
    conv = convs.RGATConv(i, o, 2)
    nn.init.constant_(conv.l2, 1 / o)  # PyG 2.8 leaves it uninitialised
    return conv


def _kernels(i: int, o: int) -> nn.Module:
    return nn.ModuleList([nn.Linear(i, o) for _ in range(5)])


_HETEROGENEOUS = "for heterogeneous graphs, which this page does not try: see python.md"
_ABSTRACT = "a base class without parameters of its own; its subclasses are in this table"
_CUGRAPH = "needs pylibcugraphops and a GPU; it calls a fused kernel on the whole graph"
_DEGREES = torch.tensor([4, 12, 12, 8, 6, 4, 4, 4, 2, 2, 1, 1])

CONVOLUTIONS: dict[str, Make | str] = {
    "MessagePassing": _ABSTRACT,
    "SimpleConv": _plain(lambda i, o: convs.SimpleConv(), 12),
    "GCNConv": _plain(convs.GCNConv),
    "ChebConv": _plain(lambda i, o: convs.ChebConv(i, o, K=3)),
    "SAGEConv": _plain(convs.SAGEConv),
    "CuGraphSAGEConv": _CUGRAPH,
    "GraphConv": _plain(convs.GraphConv),
    "GravNetConv": _called(lambda i, o: convs.GravNetConv(i, o, 3, 4, 5), without_edges),
    "GatedGraphConv": _plain(lambda i, o: convs.GatedGraphConv(o, 3), 16),
    "ResGatedGraphConv": _plain(convs.ResGatedGraphConv),
    "GATConv": _plain(lambda i, o: convs.GATConv(i, o // 2, heads=2)),
    "CuGraphGATConv": _CUGRAPH,
    "FusedGATConv": "needs dgNN and a GPU; it calls a fused kernel on the whole graph",
    "GATv2Conv": _plain(lambda i, o: convs.GATv2Conv(i, o // 2, heads=2)),
    "TransformerConv": _plain(lambda i, o: convs.TransformerConv(i, o // 2, heads=2)),
    "AGNNConv": _plain(lambda i, o: convs.AGNNConv(), 12),
    "TAGConv": _plain(convs.TAGConv),
    "GINConv": _plain(lambda i, o: convs.GINConv(_mlp(i, o))),
    "GINEConv": _called(lambda i, o: convs.GINEConv(_mlp(i, o), edge_dim=3), with_edge_attr),
    "ARMAConv": _plain(lambda i, o: convs.ARMAConv(i, o, num_stacks=2, num_layers=2)),
    "SGConv": _plain(lambda i, o: convs.SGConv(i, o, K=2)),
    "SSGConv": _plain(lambda i, o: convs.SSGConv(i, o, alpha=0.1, K=2)),
    "APPNP": _plain(lambda i, o: convs.APPNP(K=5, alpha=0.1), 12),
    "MFConv": _plain(convs.MFConv),
    "RGCNConv": _called(lambda i, o: convs.RGCNConv(i, o, 2), with_edge_type),
    "FastRGCNConv": _called(lambda i, o: convs.FastRGCNConv(i, o, 2), with_edge_type),
    "CuGraphRGCNConv": _CUGRAPH,
    "RGATConv": _called(_rgat, with_edge_type),
    "SignedConv": _called(lambda i, o: convs.SignedConv(i, o // 2, first_aggr=True), with_signs),
    "DNAConv": _called(lambda i, o: convs.DNAConv(12, heads=2), stacked, 12),
    "PointNetConv": _called(lambda i, o: convs.PointNetConv(_mlp(i + 3, o)), with_position),
    "GMMConv": _called(lambda i, o: convs.GMMConv(i, o, dim=3, kernel_size=2), with_edge_attr),
    "SplineConv": _called(
        lambda i, o: convs.SplineConv(i, o, dim=3, kernel_size=2), with_edge_attr
    ),
    "NNConv": _called(lambda i, o: convs.NNConv(i, o, nn.Linear(3, i * o)), with_edge_attr),
    "CGConv": _called(lambda i, o: convs.CGConv(12, dim=3), with_edge_attr, 12),
    "EdgeConv": _plain(lambda i, o: convs.EdgeConv(_mlp(2 * i, o))),
    "DynamicEdgeConv": _called(
        lambda i, o: convs.DynamicEdgeConv(_mlp(2 * i, o), k=4), without_edges
    ),
    "XConv": _called(lambda i, o: convs.XConv(i, o, 3, 4), with_position_alone),
    "PPFConv": _called(lambda i, o: convs.PPFConv(_mlp(i + 4, o)), with_normal),
    "FeaStConv": _plain(lambda i, o: convs.FeaStConv(i, o, heads=2)),
    "PointTransformerConv": _called(convs.PointTransformerConv, with_position),
    "HypergraphConv": _plain(convs.HypergraphConv),
    "LEConv": _plain(convs.LEConv),
    "PNAConv": _plain(
        lambda i, o: convs.PNAConv(i, o, ["mean", "max"], ["identity", "linear"], _DEGREES)
    ),
    "ClusterGCNConv": _plain(convs.ClusterGCNConv),
    "GENConv": _plain(convs.GENConv),
    "GCN2Conv": _called(lambda i, o: convs.GCN2Conv(12, alpha=0.1), with_first, 12),
    "PANConv": _called(lambda i, o: convs.PANConv(i, o, filter_size=2), first_of_two),
    "WLConv": "takes integer colours, not features; it has nothing to quantize or train",
    "WLConvContinuous": _plain(lambda i, o: convs.WLConvContinuous(), 12),
    "FiLMConv": _plain(convs.FiLMConv),
    "SuperGATConv": _plain(lambda i, o: convs.SuperGATConv(i, o // 2, heads=2)),
    "FAConv": _called(lambda i, o: convs.FAConv(12), with_first, 12),
    "EGConv": _plain(lambda i, o: convs.EGConv(i, o, num_heads=2)),
    "PDNConv": _called(
        lambda i, o: convs.PDNConv(i, o, edge_dim=3, hidden_channels=4), with_edge_attr
    ),
    "GeneralConv": _plain(convs.GeneralConv),
    "HGTConv": _HETEROGENEOUS,
    "HEATConv": _called(lambda i, o: convs.HEATConv(i, o, 2, 2, 4, 3, 4), with_types),
    "HeteroConv": _HETEROGENEOUS,
    "HANConv": _HETEROGENEOUS,
    "LGConv": _plain(lambda i, o: convs.LGConv(), 12),
    "PointGNNConv": _called(
        lambda i, o: convs.PointGNNConv(_mlp(12, 3), _mlp(15, 12), _mlp(12, 12)),
        with_position,
        12,
    ),
    "GPSConv": _plain(lambda i, o: convs.GPSConv(12, convs.GCNConv(12, 12), heads=2), 12),
    "AntiSymmetricConv": _plain(lambda i, o: convs.AntiSymmetricConv(12, num_iters=2), 12),
    "DirGNNConv": _plain(lambda i, o: convs.DirGNNConv(convs.GCNConv(i, o))),
    "MixHopConv": _plain(lambda i, o: convs.MixHopConv(i, o // 2, powers=[0, 2])),
    "MeshCNNConv": _called(lambda i, o: convs.MeshCNNConv(i, o, _kernels(i, o)), as_faces),
}


class RawSkip(nn.Module):
    """Concatenates the raw input to what a convolution gives."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = convs.GCNConv(12, 8), nn.Linear(20, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return class scores, ``[N, C]``."""
        return self.out(torch.cat([x, self.conv(x, edge_index).relu()], dim=1))


class Normalised(nn.Module):
    """Normalises the raw input, and casts it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm1d(12), convs.GCNConv(12, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return class scores, ``[N, C]``."""
        return self.conv(self.norm(x.float()), edge_index)


class Embedded(nn.Module):
    """Has a table of node embeddings, and the graph's features beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(60, 8)
        self.conv1, self.conv2 = convs.GCNConv(8, 8), convs.GCNConv(12, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return class scores, ``[N, C]``."""
        table = self.conv1(self.table.weight, edge_index)
        return self.out((table + self.conv2(x, edge_index)).relu())


class Shared(nn.Module):
    """Calls one convolution twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = convs.GCNConv(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return class scores, ``[N, C]``."""
        return self.out(self.conv(self.conv(x, edge_index).relu(), edge_index))


class Cached(nn.Module):
    """Propagates the input once, and keeps the result."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return class scores, ``[N, C]``."""
        return self.conv(x, edge_index)


def _with_lambda() -> nn.Module:
    layers: list[Any] = [
        (convs.GCNConv(12, 8), "x, edge_index -> x"),
        lambda x: x.relu(),
        (convs.GCNConv(8, 3), "x, edge_index -> x"),
    ]
    return GraphSequential("x, edge_index", layers)


def _weight_norm() -> nn.Module:
    model = Net(convs.SAGEConv)
    nn.utils.parametrizations.weight_norm(model.out)
    return model


def _polynormer() -> nn.Module:
    model = models.Polynormer(12, 8, 3, local_layers=2, global_layers=1)
    model._global = True  # otherwise its global layers are not called
    return model


def _basic(name: str, **options: Any) -> Make:
    return lambda: getattr(models, name)(12, 8, 2, 3, **options)


WHOLE_MODELS: dict[str, Make | str] = {
    "sgquant_optuna.GCN": lambda: GCN(12, 3, 8),
    "sgquant_optuna.GAT": lambda: GAT(12, 3, 16, heads=4),
    "sgquant_optuna.AGNN": lambda: AGNN(12, 3, 8),
    "GCN": _basic("GCN"),
    "GCN, norm=batch": _basic("GCN", norm="batch"),
    "GCN, norm=layer": _basic("GCN", norm="layer"),
    "GCN, jk=cat": _basic("GCN", jk="cat"),
    "GCN, jk=max": _basic("GCN", jk="max"),
    "GCN, jk=lstm": _basic("GCN", jk="lstm"),
    "GraphSAGE": _basic("GraphSAGE"),
    "GIN": _basic("GIN"),
    "GAT": _basic("GAT", heads=2),
    "GAT, v2": _basic("GAT", heads=2, v2=True),
    "PNA": _basic("PNA", aggregators=["mean", "max"], scalers=["identity"], deg=_DEGREES.clone()),
    "EdgeCNN": _basic("EdgeCNN"),
    "LINKX": lambda: models.LINKX(60, 12, 8, 3, num_layers=1),
    "GraphUNet": lambda: models.GraphUNet(12, 8, 3, depth=2),
    "RECT_L": lambda: models.RECT_L(12, 8),
    "SGFormer": lambda: models.SGFormer(12, 8, 3, gnn_num_layers=2),
    "Polynormer": _polynormer,
    "SGConv, cached=True": lambda: Cached(convs.SGConv(12, 3, K=2, cached=True)),
    "SSGConv, cached=True": lambda: Cached(convs.SSGConv(12, 3, 0.1, K=2, cached=True)),
    "raw skip connection": RawSkip,
    "normalisation and cast of x": Normalised,
    "embedding table beside x": Embedded,
    "one convolution called twice": Shared,
    "Sequential with a lambda": _with_lambda,
    "weight_norm": _weight_norm,
    "lazy sizes": lambda: Net(lambda i, o: convs.SAGEConv(-1, o)),
    "GATv2Conv, share_weights": lambda: Net(
        lambda i, o: convs.GATv2Conv(i, o, share_weights=True)
    ),
}
