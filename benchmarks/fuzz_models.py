"""Random small models: training is that of a plain PyG loop, and 32 bits change nothing.

Each model is a random stack of layers: convolutions on the whole graph, on a part, on edges drawn
anew, with learned weights; norms, dropout, residuals, jumping concatenation. The losses of ``fit``
have to equal those of a plain loop to a relative 1e-5, and a model with quantizers at 32 bits has
to give the scores of the model itself to the last bit. A model that is refused by name is counted.

    python benchmarks/fuzz_models.py [--quick] [--examples 2000] [--seed 0]
"""

from __future__ import annotations

import argparse
import collections
import copy
import math
import random
import warnings
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn import (
    APPNP,
    AGNNConv,
    GATConv,
    GATv2Conv,
    GCNConv,
    GINConv,
    GraphConv,
    SAGEConv,
    SGConv,
    TAGConv,
    TransformerConv,
)
from torch_geometric.utils import dropout_edge

from sgquant_optuna.attachment.calibration import calibrate
from sgquant_optuna.attachment.quantized_model import attach
from sgquant_optuna.exceptions import SgquantError
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.graph.training import fit
from sgquant_optuna.graph.training_config import TrainingConfig

WIDTH, CLASSES, NODES = 12, 3, 40
TRAINING = TrainingConfig(epochs=6, learning_rate=0.005, patience=6)

CONVS = {
    "gcn": lambda: GCNConv(WIDTH, WIDTH),
    "gcn cached": lambda: GCNConv(WIDTH, WIDTH, cached=True),
    "gcn improved": lambda: GCNConv(WIDTH, WIDTH, improved=True),
    "gcn reversed": lambda: GCNConv(WIDTH, WIDTH, flow="target_to_source"),
    "sage": lambda: SAGEConv(WIDTH, WIDTH),
    "sage sum": lambda: SAGEConv(WIDTH, WIDTH, aggr="sum"),
    "sage max": lambda: SAGEConv(WIDTH, WIDTH, aggr="max"),
    "gin": lambda: GINConv(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()), train_eps=True),
    "gat": lambda: GATConv(WIDTH, WIDTH // 2, heads=2, dropout=0.2),
    "gat mean": lambda: GATConv(WIDTH, WIDTH, aggr="mean"),
    "gatv2": lambda: GATv2Conv(WIDTH, WIDTH // 2, heads=2),
    "agnn": lambda: AGNNConv(),
    "transformer": lambda: TransformerConv(WIDTH, WIDTH // 2, heads=2),
    "sg": lambda: SGConv(WIDTH, WIDTH, K=2),
    "appnp": lambda: APPNP(K=2, alpha=0.2),
    "tag": lambda: TAGConv(WIDTH, WIDTH, K=2),
    "graph": lambda: GraphConv(WIDTH, WIDTH),
}
WEIGHTED = ("gcn", "gcn improved", "gcn reversed", "sg", "appnp", "tag", "graph")
OTHERS = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "dropout": lambda: nn.Dropout(0.3),
    "relu": lambda: nn.ReLU(),
    "tanh": lambda: nn.Tanh(),
}
EDGES = ("all", "half", "reversed", "dropped", "hidden", "weighted", "constant weights")


class Layer(NamedTuple):
    """One layer of a random model.

    Args:
        name:
            Key of ``CONVS`` or ``OTHERS``.
        edges:
            One of ``EDGES``; of no effect where there is no convolution.
        residual:
            Whether the input is added to the output.
        again:
            Whether the layer is called once more.
    """

    name: str
    edges: str = "all"
    residual: bool = False
    again: bool = False


class Recipe(NamedTuple):
    """A random model.

    Args:
        layers:
            Layers, first to last.
        jumping:
            Whether the last layer sees the output of every layer.
        seed:
            Seed of the weights and of the graph.
    """

    layers: tuple[Layer, ...]
    jumping: bool = False
    seed: int = 0


class RandomModel(nn.Module):
    """The model of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.layers = nn.ModuleList((CONVS | OTHERS)[layer.name]() for layer in recipe.layers)
        if any(layer.edges == "weighted" and layer.name in WEIGHTED for layer in recipe.layers):
            self.edge_lin = nn.Linear(2 * WIDTH, 1)
        parts = len(recipe.layers) if recipe.jumping else 1
        self.out = nn.Linear(WIDTH * parts, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        outputs = []
        for layer, module in zip(self.recipe.layers, self.layers, strict=True):
            before = x
            for _ in range(1 + layer.again):
                x = self._call(layer, module, x, edge_index)
            x = x + before if layer.residual else x
            outputs.append(x)
        return self.out(torch.cat(outputs, dim=1) if self.recipe.jumping else x)

    def _call(self, layer: Layer, module: nn.Module, x: Tensor, edge_index: Tensor) -> Tensor:
        if layer.name not in CONVS:
            return module(x)
        if layer.edges == "half":
            edge_index = edge_index[:, ::2]
        elif layer.edges == "reversed":
            edge_index = edge_index.flip(0)
        elif layer.edges == "dropped":
            edge_index = dropout_edge(edge_index, 0.4, training=self.training)[0]
        elif layer.edges == "hidden":
            near = (x.detach() @ x.detach().t()).topk(2).indices
            source = torch.arange(len(x))[:, None].expand_as(near)
            edge_index = torch.stack([source.flatten(), near.flatten()])
        elif layer.edges == "weighted" and layer.name in WEIGHTED:
            ends = torch.cat([x[edge_index[0]], x[edge_index[1]]], dim=1)
            return module(x, edge_index, self.edge_lin(ends).sigmoid().flatten())
        elif layer.edges == "constant weights" and layer.name in WEIGHTED:
            return module(x, edge_index, torch.linspace(0.1, 1, edge_index.shape[1]))
        return module(x, edge_index)


def make_graph(seed: int) -> Data:
    generator = torch.Generator().manual_seed(seed)
    part = torch.randperm(NODES, generator=generator) % 3
    return Data(
        x=torch.rand(NODES, WIDTH, generator=generator),
        edge_index=torch.randint(NODES, (2, 4 * NODES), generator=generator),
        y=torch.arange(NODES) % CLASSES,
        train_mask=part == 0,
        val_mask=part == 1,
        test_mask=part == 2,
    )


def random_recipe(chance: random.Random) -> Recipe:
    layers = tuple(
        Layer(
            chance.choice([*CONVS, *CONVS, *OTHERS]),
            chance.choice(["all", *EDGES]),
            chance.random() < 0.2,
            chance.random() < 0.15,
        )
        for _ in range(chance.randint(1, 4))
    )
    return Recipe(layers, chance.random() < 0.2, chance.randrange(1000))


def difference(recipe: Recipe) -> str | None:
    """Return what differs from plain PyG, or ``None``.

    Raises:
        SgquantError:
            If the model is refused.
    """
    graph = make_graph(recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = RandomModel(recipe)
    found, expected = fit(copy.deepcopy(model), graph, TRAINING).losses, plain_losses(model, graph)
    if len(found) != len(expected) or not all(map(_is_close, found, expected)):
        return f"losses {found} instead of {expected}"
    fixed = FixedGraph(graph)
    with torch.no_grad():
        forward(model.eval(), graph)  # a cached convolution keeps its first edges
    quantized = attach(copy.deepcopy(model))
    calibrate(quantized, graph, candidates=(1, 8), forward=forward)
    for is_training in (False, True):
        for is_fast in (False, True):
            scores = []
            for one in (copy.deepcopy(model), copy.deepcopy(quantized)):
                block: Any = fixed.speed_up(one) if is_fast else nullcontext(graph)
                with torch.random.fork_rng(devices=[]), torch.no_grad(), block as data:
                    torch.manual_seed(1)
                    scores.append(forward(one.train(is_training), data))
            if not torch.equal(*scores) and not scores[0].isnan().any():
                return f"scores at 32 bits, training {is_training}, fast path {is_fast}"
    return None


def plain_losses(model: nn.Module, data: Data) -> list[float]:
    """Train as anybody would with PyG alone, after the first look at the validation nodes."""
    model = copy.deepcopy(model)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        optimizer = torch.optim.Adam(
            model.parameters(), lr=TRAINING.learning_rate, weight_decay=TRAINING.weight_decay
        )
        with torch.no_grad():
            model.eval()(data.x, data.edge_index)
        model.train()
        for _ in range(TRAINING.epochs):
            optimizer.zero_grad()
            scores = model(data.x, data.edge_index)[data.train_mask]
            loss = F.cross_entropy(scores, data.y[data.train_mask])
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                break
    return losses


def _is_close(one: float, other: float) -> bool:
    return (
        one == other
        or math.isnan(one) == math.isnan(other) is True
        or (abs(one - other) <= 1e-5 * abs(other))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="50 models")
    parser.add_argument("--examples", type=int, default=2000, help="number of random models")
    parser.add_argument("--seed", type=int, default=0, help="seed of the models")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    chance = random.Random(options.seed)
    counts: collections.Counter[str] = collections.Counter()
    refused: collections.Counter[str] = collections.Counter()
    for _ in range(50 if options.quick else options.examples):
        recipe = random_recipe(chance)
        try:
            differs = difference(recipe)
        except SgquantError as error:
            counts["refused by name"] += 1
            refused[f"{type(error).__name__}: {error}"] += 1
        except Exception as error:
            counts["raw errors"] += 1
            print(f"{type(error).__name__} {str(error).splitlines()[:1]}: {recipe}", flush=True)
        else:
            counts["different" if differs else "equal"] += 1
            if differs:
                print(f"{differs}: {recipe}", flush=True)
    for reason, number in refused.most_common():
        print(f"{number} x {reason}")
    print(", ".join(f"{number} {what}" for what, number in counts.most_common()))
    if counts["different"] or counts["raw errors"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
