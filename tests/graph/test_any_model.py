"""The fast path changes the time of a training, and nothing else: whatever a model does."""

import copy

import pytest
import torch
from torch import nn
from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, GINConv, GraphUNet, SAGEConv
from torch_geometric.utils import dropout_edge, to_torch_csr_tensor

from sgquant_optuna.graph.training import fit
from sgquant_optuna.graph.training_config import TrainingConfig
from tests.conftest import make_graph
from tests.graph.plain_loop import train_plainly

SIZE = 12

CONVS = {
    "gcn": lambda **options: GCNConv(SIZE, SIZE, **options),
    "gcn without loops": lambda **options: GCNConv(SIZE, SIZE, add_self_loops=False, **options),
    "gcn improved": lambda **options: GCNConv(SIZE, SIZE, improved=True, **options),
    "gcn not normalised": lambda **options: GCNConv(SIZE, SIZE, normalize=False, **options),
    "gcn mean": lambda **options: GCNConv(SIZE, SIZE, aggr="mean", **options),
    "gcn cached by the user": lambda **options: GCNConv(SIZE, SIZE, cached=True, **options),
    "sage": lambda **options: SAGEConv(SIZE, SIZE, **options),
    "sage sum": lambda **options: SAGEConv(SIZE, SIZE, aggr="sum", **options),
    "sage projected": lambda **options: SAGEConv(SIZE, SIZE, project=True, **options),
    "gin": lambda **options: GINConv(nn.Linear(SIZE, SIZE), train_eps=True, **options),
    "gin mean": lambda **options: GINConv(nn.Linear(SIZE, SIZE), aggr="mean", **options),
    "gat": lambda **options: GATConv(SIZE, SIZE // 3, heads=3, **options),
    "gat mean": lambda **options: GATConv(SIZE, SIZE // 3, heads=3, aggr="mean", **options),
    "gat dropout": lambda **options: GATConv(SIZE, SIZE // 3, heads=3, dropout=0.3, **options),
    "gatv2": lambda **options: GATv2Conv(SIZE, SIZE // 3, heads=3, **options),
}
TAKES_WEIGHTS = ("gcn",)


class Net(nn.Module):
    """Two convolutions and a linear layer; what happens between is up to a situation."""

    def __init__(self, make, **options):
        super().__init__()
        self.conv1, self.conv2 = make(**options), make(**options)
        self.lin = nn.Linear(SIZE, 3)

    def forward(self, x, edge_index):
        x = self.conv1(x, edge_index).relu()
        return self.lin(self.conv2(x, edge_index).relu())


class DropsEdges(Net):
    p = 0.5

    def forward(self, x, edge_index):
        return super().forward(x, dropout_edge(edge_index, self.p, training=self.training)[0])


class DropsAlmostAllEdges(DropsEdges):
    p = 0.9


class DropsNoEdges(DropsEdges):
    p = 0.0


class LearnsWeights(Net):
    def __init__(self, make, **options):
        super().__init__(make, **options)
        self.edge_lin = nn.Linear(2 * SIZE, 1)

    def weights(self, x, edge_index):
        ends = torch.cat([x[edge_index[0]], x[edge_index[1]]], dim=1)
        return self.edge_lin(ends).sigmoid().flatten()

    def forward(self, x, edge_index):
        weight = self.weights(x, edge_index)
        x = self.conv1(x, edge_index, weight).relu()
        return self.lin(self.conv2(x, edge_index, weight).relu())


class HasNegativeWeights(LearnsWeights):
    def weights(self, x, edge_index):
        return torch.linspace(-0.1, 1, edge_index.shape[1])


class HasAWeightParameter(LearnsWeights):
    def __init__(self, make, **options):
        super().__init__(make, **options)
        self.weight = nn.Parameter(torch.ones(make_graph().num_edges))

    def weights(self, x, edge_index):
        return self.weight


class ChangesWeightsInPlace(LearnsWeights):
    def __init__(self, make, **options):
        super().__init__(make, **options)
        self.register_buffer("weight", torch.ones(make_graph().num_edges))

    def weights(self, x, edge_index):
        if self.training:
            self.weight.mul_(torch.linspace(0.5, 1, len(self.weight)))
        return self.weight


class HasSeveralEdgeSets(Net):
    def forward(self, x, edge_index):
        half = edge_index.shape[1] // 2
        for edges in (edge_index[:, :half], edge_index.flip(0), edge_index[:, half:]):
            x = self.conv2(self.conv1(x, edges).relu(), edge_index)
        return self.lin(x.relu())


class HasTwelveEdgeSets(Net):
    def forward(self, x, edge_index):
        for first in range(12):
            x = x + 0.3 * self.conv1(x, edge_index[:, first::2]).relu()
        return self.lin(x)


class MakesEdgesOfHiddenFeatures(Net):
    def forward(self, x, edge_index):
        x = self.conv1(x, edge_index).relu()
        near = torch.cdist(x.detach(), x.detach()).topk(3, largest=False).indices
        source = torch.arange(len(x))[:, None].expand_as(near)
        edges = torch.stack([source.flatten(), near.flatten()])
        return self.lin(self.conv2(x, edges).relu())


class ChangesEdgesInPlace(Net):
    def __init__(self, make, **options):
        super().__init__(make, **options)
        self.register_buffer("edges", make_graph().edge_index.clone())

    def forward(self, x, edge_index):
        if self.training:
            self.edges.copy_((self.edges + 1) % len(x))
        return super().forward(x, self.edges)


class CallsALayerTwice(Net):
    def forward(self, x, edge_index):
        x = self.conv1(self.conv1(x, edge_index).relu(), edge_index)
        return self.lin(self.conv1(x, edge_index[:, ::2]))


class SharesALayer(Net):
    def __init__(self, make, **options):
        super().__init__(make, **options)
        self.conv2 = self.conv1
        self.nested = nn.ModuleList([self.conv1, nn.ModuleDict({"again": self.conv1})])


class GivesSourceAndTarget(Net):
    def forward(self, x, edge_index):
        x = self.conv1((x, x), edge_index).relu()
        return self.lin(self.conv2((x, 2 * x), edge_index).relu())


class GoesUpAndDown(Net):
    def __init__(self, make, **options):
        super().__init__(make, **options)
        self.unet = GraphUNet(SIZE, SIZE, SIZE, depth=2, pool_ratios=0.5)

    def forward(self, x, edge_index):
        return super().forward(self.unet(x, edge_index), edge_index)


class HasNoEdges(Net):
    def forward(self, x, edge_index):
        return super().forward(x, edge_index[:, :0])


class ScalesWithAutocast(Net):
    def forward(self, x, edge_index):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = super().forward(x, edge_index)
        return scores.float()


class TakesASparseMatrix(Net):
    def forward(self, x, adj_t):
        return super().forward(x, adj_t)


SITUATIONS = {
    "plain": Net,
    "no edges dropped": DropsNoEdges,
    "edges dropped": DropsEdges,
    "almost all edges dropped": DropsAlmostAllEdges,
    "learned weights": LearnsWeights,
    "negative weights": HasNegativeWeights,
    "a parameter as weights": HasAWeightParameter,
    "weights changed in place": ChangesWeightsInPlace,
    "several edge sets": HasSeveralEdgeSets,
    "twelve edge sets": HasTwelveEdgeSets,
    "edges of hidden features": MakesEdgesOfHiddenFeatures,
    "edges changed in place": ChangesEdgesInPlace,
    "a layer called twice": CallsALayerTwice,
    "a shared layer": SharesALayer,
    "source and target": GivesSourceAndTarget,
    "graph u-net": GoesUpAndDown,
    "no edges": HasNoEdges,
    "reversed flow": Net,
    "bfloat16": Net,
    "float64": Net,
    "autocast": ScalesWithAutocast,
    "sparse features": Net,
    "sparse features, autocast": ScalesWithAutocast,
    "sparse features, float64": Net,
    "sparse features, bfloat16": Net,
    "sparse matrix": TakesASparseMatrix,
}
TYPES = {"bfloat16": torch.bfloat16, "float64": torch.float64}


def is_possible(conv: str, situation: str) -> bool:
    """Whether plain PyG can do it."""
    if issubclass(SITUATIONS[situation], LearnsWeights):
        return conv.startswith(TAKES_WEIGHTS) and "cached" not in conv
    if issubclass(SITUATIONS[situation], GivesSourceAndTarget):
        return not conv.startswith("gcn")
    if situation == "sparse matrix":
        return "mean" not in conv or not conv.startswith("gat")
    # Cached edges of another number than the current ones: PyG's own error.
    return True


CASES = [
    (conv, situation) for situation in SITUATIONS for conv in CONVS if is_possible(conv, situation)
]


@pytest.mark.filterwarnings("ignore")  # plain PyG and autocast warn at themselves
@pytest.mark.parametrize(("conv", "situation"), CASES)
def test_losses_and_weights_are_those_of_a_plain_loop(conv, situation):
    graph = make_graph()
    dtype = next((TYPES[name] for name in TYPES if name in situation), torch.float32)
    if "sparse features" in situation:
        graph.x = graph.x * (torch.rand(graph.x.shape, generator=torch.manual_seed(3)) < 0.1)
    if situation == "sparse matrix":
        edges = graph.edge_index.flip(0)
        graph.adj_t = to_torch_csr_tensor(edges, size=(60, 60))
    graph.x = graph.x.to(dtype)
    options = {"flow": "target_to_source"} if situation == "reversed flow" else {}
    torch.manual_seed(1)
    model = SITUATIONS[situation](CONVS[conv], **options).to(dtype)
    config = TrainingConfig(epochs=12, learning_rate=0.005, patience=12)

    losses, trained = train_plainly(model, graph, config)
    states = []
    ours = copy.deepcopy(model)
    found = fit(ours, graph, config, seed=0, on_epoch=lambda *_: states.append(weights_of(ours)))
    assert found.losses == pytest.approx(losses, rel=1e-5, nan_ok=True)
    if found.epochs == config.epochs:
        # Adam makes a step of full length of a gradient that is rounding alone.
        for name, weights in weights_of(trained).items():
            difference = (states[-1][name] - weights).double().norm()
            assert difference <= 3e-3 * weights.double().norm() + 1e-4, name


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}
