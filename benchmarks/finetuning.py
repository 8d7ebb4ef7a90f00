"""Time of one finetuning epoch of a quantized model: ours and a naive implementation.

The naive implementation is the usual one: dense features are quantized again in each epoch, and
PyG gathers and scatters messages. Ours quantizes the non-zeros once, multiplies only them, and
aggregates by one sparse product. Both run in one process, epoch by epoch in turn. Without dropout,
the losses of the first epochs must agree. With dropout, only the time is compared, because sparse
features draw other masks. The share of an epoch that goes into telling whether edges have changed
is measured by timing these look-ups within the epochs of ours. For GAT, the naive implementation
is the same model on the dense graph, without the fast path.

    python benchmarks/finetuning.py [--quick] [--model gat] [--dataset Cora --root FOLDER]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.data import Data

from sgquant_optuna.attachment.calibration import calibrate
from sgquant_optuna.attachment.quantized_model import attach, bind, set_bit_widths
from sgquant_optuna.graph.adjacency_cache import FirstAdjacencies
from sgquant_optuna.graph.datasets import load_graph, random_split
from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.graph.paper_models import GAT, GCN
from sgquant_optuna.quantization.affine import affine_parameters, fake_quantize
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.sites import BitWidths

COMPARED_EPOCHS = 10


class NaiveGCN(nn.Module):
    """A GCN that quantizes its dense inputs in every epoch, with one bit width for each bucket."""

    def __init__(self, plain: GCN, ranges: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        super().__init__()
        self.plain, self.ranges = plain, ranges

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor, bits: torch.Tensor):
        plain = self.plain
        x = F.dropout(self._quantize(0, x, bits), plain.dropout, self.training)
        x = plain.conv1(x, edge_index).relu()
        x = F.dropout(self._quantize(1, x, bits), plain.dropout, self.training)
        return plain.conv2(x, edge_index)

    def _quantize(self, layer: int, x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
        lower, upper = self.ranges[layer]
        scale, zero_point = affine_parameters(lower, upper, bits)
        return fake_quantize(x, scale, zero_point, bits)


def synthetic_cora() -> Data:
    """Return a graph with Cora's numbers of nodes, features and edges, and random values."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(2708, 1433, generator=generator) < 0.0127).float()
    edge_index = torch.randint(2708, (2, 10556), generator=generator)
    y = torch.arange(2708) % 7
    return random_split(Data(x=x, edge_index=edge_index, y=y))


@contextmanager
def timed_lookups() -> Iterator[list[float]]:
    """Collect the time of each look-up of a matrix by edges, in seconds."""
    seconds: list[float] = []
    get = FirstAdjacencies.get

    def timed(cache: FirstAdjacencies, *args):
        started = time.perf_counter()
        try:
            return get(cache, *args)
        finally:
            seconds.append(time.perf_counter() - started)

    FirstAdjacencies.get = timed  # type: ignore[assignment]
    try:
        yield seconds
    finally:
        FirstAdjacencies.get = get


def prepare(data: Data, dropout: float, name: str):
    """Return the graph, our model, and two functions that train equal models for one epoch."""
    data = AddDegreeBuckets((2, 3, 5))(data.clone())
    torch.manual_seed(0)
    model_class = {"gcn": GCN, "gat": GAT}[name]
    plain = model_class(data.num_features, int(data.y.max()) + 1, dropout=dropout)
    widths = (1, 2, 4, 8)
    fixed = FixedGraph(data)
    ours = attach(
        copy.deepcopy(plain), config=QuantizerConfig(range_estimator="minmax"), num_buckets=4
    )
    with fixed.speed_up(ours) as graph:
        layout = calibrate(ours, graph, candidates=widths, forward=forward)
    bind(ours, fixed.data)
    bits = {site: 8 if site.bucket is None else widths[3 - site.bucket] for site in layout.sizes}
    set_bit_widths(ours, BitWidths(bits))
    if name == "gcn":
        naive_call = naive_gcn(plain, data, widths)
    else:
        naive = copy.deepcopy(ours)
        bind(naive, data.clone())  # another tensor than x, so that x is quantized in each epoch
        naive_call = naive, lambda: forward(naive, data)

    def stepper(model: nn.Module, call):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)

        def step() -> float:
            model.train()
            optimizer.zero_grad()
            loss = F.cross_entropy(call()[data.train_mask], data.y[data.train_mask])
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return step

    ours_step = stepper(ours, lambda: forward(ours, fixed.data))
    return fixed, ours, ours_step, stepper(*naive_call)


def naive_gcn(plain: GCN, data: Data, widths: tuple[int, ...]):
    """Return a naive GCN and its call; nodes of a low degree bucket get the larger widths."""
    with torch.no_grad():
        hidden = plain.eval().conv1(data.x, data.edge_index).relu()
    ranges = [(x.min().view(1, 1), x.max().view(1, 1)) for x in (data.x, hidden)]
    naive = NaiveGCN(plain, ranges)
    bits = torch.tensor(widths).flip(0)[data.degree_bucket][:, None]
    return naive, lambda: naive(data.x, data.edge_index, bits)


def measure(data: Data, dropout: float, epochs: int, name: str) -> None:
    fixed, ours, ours_step, naive_step = prepare(data, dropout, name)
    times: dict[str, list[float]] = {"ours": [], "naive": []}
    difference = 0.0
    with fixed.speed_up(ours), timed_lookups() as lookups:
        for epoch in range(epochs):
            if epoch == 2:
                lookups.clear()
            losses = {}
            for name, step in (("ours", ours_step), ("naive", naive_step)):
                started = time.perf_counter()
                losses[name] = step()
                if epoch >= 2:  # the first epochs fill the caches
                    times[name].append(time.perf_counter() - started)
            # In later epochs, rounding errors may move a value across the border of two codes.
            if epoch < COMPARED_EPOCHS:
                difference = max(difference, abs(losses["ours"] - losses["naive"]))
    ratios = [n / o for n, o in zip(times["naive"], times["ours"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    compared = (
        f"largest difference of losses in {COMPARED_EPOCHS} epochs {difference:.1e}"
        if dropout == 0
        else ""
    )
    share = sum(lookups) / sum(times["ours"])
    print(
        f"dropout {dropout:g}: naive {1e3 * statistics.median(times['naive']):.2f} ms, "
        f"ours {1e3 * statistics.median(times['ours']):.2f} ms, "
        f"{middle:.1f}x faster (quartiles {low:.1f} to {high:.1f}), "
        f"edges compared in {100 * share:.2f} % of an epoch {compared}"
    )
    if dropout == 0:
        assert difference < 1e-5, "the losses differ"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    parser.add_argument("--model", choices=("gcn", "gat"), default="gcn")
    parser.add_argument("--dataset", help="a real graph instead of one of Cora's size")
    parser.add_argument("--root", help="folder of data sets")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    data = load_graph(options.dataset, options.root) if options.dataset else synthetic_cora()
    for dropout in (0.0, 0.5):
        measure(data, dropout, 20 if options.quick else 100, options.model)


if __name__ == "__main__":
    main()
