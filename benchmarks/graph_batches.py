"""Time of a trial on many graphs in mini-batches: ours and a plain loop over PyG's DataLoader.

The plain loop is what users write: `DataLoader` collates the graphs of each batch in each epoch,
the inputs of the quantized layers are fake-quantized in each pass with scales that are computed
once, and PyG gathers and scatters messages. A second plain loop collates its batches only once.
All train the same GIN with the same fused Adam, epochs and batch size, validate after each
epoch, keep the best weights, and score all graphs at the end, in one process in turn. Peak memory
is that of a process of its own above what it held when its data were ready.

The cost of the task is the time of an epoch's calls through the `Task` with ready outputs, less
that of the same loss and metric called directly, as a share of an epoch.

    python benchmarks/graph_batches.py [--quick] [--batch-size 64]
    python benchmarks/graph_batches.py --sizes        # accuracy and time by batch size
    python benchmarks/graph_batches.py --partitions   # batches dealt once or in each epoch
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GINConv, global_add_pool

import sgquant_optuna as sgq
from sgquant_optuna import tasks
from sgquant_optuna.attachment.calibrated_model import CalibratedModel
from sgquant_optuna.attachment.quantized_model import quantizers
from sgquant_optuna.graph.degree_buckets import quantile_degree_edges
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.graph.model_runs import model_run
from sgquant_optuna.graph.tasks import Task
from sgquant_optuna.graph.training_config import FINETUNING, TrainingConfig
from sgquant_optuna.quantization.affine import fake_quantize

TYPES, NOISE, CLASSES = 8, 8, 2
WIDTHS = (8, 4, 4, 2)


class Gin(nn.Module):
    """Three GIN layers of 32 features, sum pooling and a linear layer; `fake` quantizes inputs."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (TYPES + NOISE, 32, 32)
        self.convs = nn.ModuleList(
            GINConv(nn.Sequential(nn.Linear(size, 32), nn.ReLU(), nn.Linear(32, 32)))
            for size in sizes
        )
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x, edge_index).relu()
        return self.head(global_add_pool(x, batch))


class NaiveGin(Gin):
    """The same model with fake quantization written into it."""

    scales: dict[str, tuple[Tensor, Tensor, Tensor]]
    """Scale, zero point and bits of each degree bucket, ``[B, 1]``, of each layer."""

    def fake(self, name: str, x: Tensor, bucket: Tensor) -> Tensor:
        scale, zero_point, bits = self.scales[name]
        if len(scale) > 1:
            scale, zero_point, bits = scale[bucket], zero_point[bucket], bits[bucket]
        return fake_quantize(x, scale, zero_point, bits)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, bucket: Tensor) -> Tensor:
        for at, conv in enumerate(self.convs):
            x = conv(self.fake(f"convs.{at}", x, bucket), edge_index).relu()
        return self.head(self.fake("head", global_add_pool(x, batch), bucket))


def made_graphs(count: int, seed: int = 0) -> list[Data]:
    """Return graphs of 10 to 50 nodes; their class tells whether edges join unlike nodes."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        nodes = int(torch.randint(10, 51, (), generator=generator))
        at, kind = torch.arange(nodes), number % CLASSES
        types = torch.randint(TYPES, (nodes,), generator=generator)
        types[:2] = torch.tensor([0, TYPES - 1])
        upper = types >= TYPES // 2
        # Of seven chords in ten, the ends are in the same half of the types, or in the other.
        joins_other = (torch.rand(nodes, generator=generator) < 0.7) == bool(kind)
        fits = (upper[:, None] != upper[None, :]) == joins_other[:, None]
        ends = fits.float().multinomial(1, generator=generator).flatten()
        half = torch.cat([torch.stack([at, (at + 1) % nodes]), torch.stack([at, ends])], dim=1)
        noise = torch.randn(nodes, NOISE, generator=generator)
        x = torch.cat([F.one_hot(types, TYPES).float(), noise], dim=1)
        edge_index = torch.cat([half, half.flip(0)], dim=1)
        made.append(Data(x=x, edge_index=edge_index, y=torch.tensor([kind])))
    return made


def split(graphs: list[Data]) -> tuple[list[Data], list[Data], list[Data]]:
    """Return 80 % of the graphs to train on, 10 % to validate on, and 10 % to test on."""
    tenth = len(graphs) // 10
    return graphs[: -2 * tenth], graphs[-2 * tenth : -tenth], graphs[-tenth:]


def fresh(seed: int, kind: type[Gin] = Gin) -> Gin:
    torch.manual_seed(seed)
    return kind()


def scores_of(model: Gin, batch: Batch) -> Tensor:
    columns = (batch.x, batch.edge_index, batch.batch)
    return model(*columns, batch.degree_bucket) if isinstance(model, NaiveGin) else model(*columns)


Loader = Callable[[], list[Batch] | DataLoader]


def plain_training(
    model: Gin, train: Loader, others: Loader, config: TrainingConfig, seed: int
) -> float:
    """Train as users do, and return the best validation accuracy; `others` gives it first."""
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam(
        model.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )
    best_loss, best, kept = float("inf"), 0.0, copy.deepcopy(model.state_dict())
    for epoch in range(config.epochs + 1):
        model.train()
        for batch in train() if epoch else ():
            optimizer.zero_grad()
            loss = F.cross_entropy(scores_of(model, batch), batch.y)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            found = [(scores_of(model, one), one.y) for one in others()]
        scores, y = (torch.cat(part) for part in zip(*found, strict=True))
        val_loss = float(F.cross_entropy(scores, y))
        if val_loss < best_loss:
            best_loss, best = val_loss, 100 * float((scores.argmax(1) == y).float().mean())
            kept = copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return best


class Subject:
    """One trained model and its graphs, ready for trials of all kinds."""

    def __init__(
        self, count: int, batch_size: int, epochs: int, *, degrees: bool, trained: bool = True
    ) -> None:
        self.parts = split(made_graphs(count))
        self.task = tasks.graph_classification(batch_size=batch_size)
        self.size = batch_size
        self.config = TrainingConfig(
            epochs=epochs, learning_rate=FINETUNING.learning_rate, patience=epochs + 1
        )
        data = tasks.joined_graphs(*self.parts)
        edges = quantile_degree_edges(data, 4) if degrees else ()
        if edges:
            add = sgq.AddDegreeBuckets(edges)
            data = add(data)
            for part in self.parts:
                part[:] = [add(graph) for graph in part]
        else:
            for graph in sum(self.parts, []):
                graph.degree_bucket = torch.zeros(graph.num_nodes, dtype=torch.long)
        self.num_buckets = len(edges) + 1
        self.plain_model = fresh(0)
        if trained:
            training = TrainingConfig(epochs=10)
            sgq.fit(self.plain_model, data, training, task=self.task)
        self.graph = FixedGraph(data)
        self.calibrated = self.calibrated_for(self.task)
        # As a trial has them: fewer bits where degrees are high.
        self.bits = sgq.BitWidths(
            {site: WIDTHS[site.bucket or 0] for site in self.calibrated.layout.sizes}
        )
        self.once = [self.loader(part, shuffle=False) for part in self.parts]
        self.collated = [list(loader) for loader in self.once]
        self.naive = fresh(0, NaiveGin)
        self.naive.load_state_dict(self.plain_model.state_dict())
        self.naive.scales = {  # type: ignore[assignment]
            name.removesuffix("/embedding"): self.scales(quantizer)
            for name, quantizer in quantizers(self.calibrated.quantized(self.bits))
        }

    def calibrated_for(self, task: Task) -> CalibratedModel:
        return CalibratedModel(
            self.plain_model,
            self.graph,
            candidates=sorted(set(WIDTHS)),
            quantizer=sgq.QuantizerConfig(),
            num_buckets=self.num_buckets,
            layers=None,
            attention=None,
            forward=forward,
            task=task,
        )

    @staticmethod
    def scales(quantizer) -> tuple[Tensor, Tensor, Tensor]:
        table = quantizer.table()
        return table.scale, table.zero_point, table.bit_width

    def loader(self, graphs: list[Data], shuffle: bool) -> DataLoader:
        return DataLoader(graphs, batch_size=self.size, shuffle=shuffle)

    def ours(self) -> float:
        model, result = self.calibrated.finetune(self.bits, self.config, seed=0)
        self.calibrated.scores(model)
        return result.accuracy

    def whole(self) -> float:
        """Train as ours does with all graphs at once."""
        calibrated = self.calibrated_for(tasks.graph_classification(batch_size=None))
        model, result = calibrated.finetune(self.bits, self.config, seed=0)
        calibrated.scores(model)
        return result.accuracy

    def plain(self) -> float:
        shuffled = self.loader(self.parts[0], shuffle=True)
        return self._naive_trial(lambda: shuffled, lambda: self.once[1], self.once)

    def plain_collated_once(self) -> float:
        return self._naive_trial(lambda: self.collated[0], lambda: self.collated[1], self.collated)

    def _naive_trial(self, train: Loader, val: Loader, everything) -> float:
        model = copy.deepcopy(self.naive)
        best = plain_training(model, train, val, self.config, 0)
        with torch.no_grad():
            for batches in everything:
                for one in batches:
                    scores_of(model, one)
        return best


def compare(subject: Subject, repeats: int) -> None:
    ways = (subject.ours, subject.plain, subject.plain_collated_once)
    wall: dict[str, list[float]] = {way.__name__: [] for way in ways}
    processor: dict[str, list[float]] = {way.__name__: [] for way in ways}
    best = {}
    for repeat in range(repeats + 1):
        for way in ways:
            started, used = time.perf_counter(), time.process_time()
            best[way.__name__] = way()
            if repeat:  # the first makes the batches of ours, and warms all up
                wall[way.__name__].append(time.perf_counter() - started)
                processor[way.__name__].append(time.process_time() - used)
    for way in ways[1:]:
        name = way.__name__
        ratios = [
            [other / mine for other, mine in zip(times[name], times["ours"], strict=True)]
            for times in (wall, processor)
        ]
        print(
            f"{name.replace('_', ' ')}: {statistics.median(wall[name]):.2f} s, ours "
            f"{statistics.median(wall['ours']):.2f} s: {statistics.median(ratios[0]):.1f} times "
            f"faster ({min(ratios[0]):.1f} to {max(ratios[0]):.1f}), by processor time "
            f"{statistics.median(ratios[1]):.1f}; validation {best[name]:.1f} %, ours "
            f"{best['ours']:.1f} %"
        )


def memory_mib(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def peak_of(subject: Subject, way: str) -> float:
    """Return the peak of one trial above what the process holds before, in MiB (Linux alone)."""
    before = memory_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # begin the peak anew
    getattr(subject, way)()
    return memory_mib("VmHWM") - before


def compare_peaks(arguments: argparse.Namespace, count: int) -> None:
    if not Path("/proc/self/clear_refs").exists():
        return
    options = ["--batch-size", str(arguments.batch_size), "--graphs", str(count)]
    found = {
        way: subprocess.run(
            [sys.executable, __file__, "--peak", way, *options],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for way in ("ours", "plain", "whole")
    }
    print(f"peak memory of a trial in MiB: {found}")


def task_cost(name: str, data: Data, task: Task, direct: Callable, repeats: int) -> None:
    """Print what the calls of an epoch cost more through a task, as a share of an epoch."""
    fixed = FixedGraph(data)
    model = fresh(0) if task.items == "graph" else sgq.make_model("gcn", data.num_features, 10)
    ready: dict[int, Tensor] = {}

    def call(module: nn.Module, part: Data) -> Tensor:
        if id(part) not in ready:
            ready[id(part)] = forward(module, part)
        return ready[id(part)]

    times: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad(), model_run(model.eval(), fixed, call, task) as run:
        whole = fixed.data
        val, y = whole.val_mask, whole.y
        selection = run.select(val)
        training = [
            (one, one.of(task.targets(one.part.data)))
            for one in run.select(whole.train_mask).chosen
        ]
        outputs = [run.outputs(one.part) for one, _ in training]
        masks = [one.rows for one, _ in training]
        of_val = [run.outputs(one.part) for one in selection.chosen]
        rows = [one.rows for one in selection.chosen]
        val_targets = y[val]

        def picked(scores: Tensor, mask: Tensor | None) -> Tensor:
            return scores if mask is None else scores[mask]

        def by_task() -> None:
            for one, targets in training:
                task.answers.loss(one.of(run.outputs(one.part)), targets)
            found = run.selected(selection)
            float(task.answers.loss(found, val_targets))
            task.metric(found, val_targets)

        def directly() -> None:
            for (_, targets), scores, mask in zip(training, outputs, masks, strict=True):
                F.cross_entropy(picked(scores, mask), targets)
            parts = [picked(scores, mask) for scores, mask in zip(of_val, rows, strict=True)]
            found = parts[0] if len(parts) == 1 else torch.cat(parts)
            float(F.cross_entropy(found, val_targets))
            direct(found, val_targets)

        for _ in range(200 * repeats):
            for way, kept in zip((by_task, directly), times, strict=True):
                started = time.perf_counter()
                way()
                kept.append(time.perf_counter() - started)
    config = TrainingConfig(epochs=10, patience=11)
    started = time.perf_counter()
    sgq.fit(model, fixed, config, task=task)
    epoch = (time.perf_counter() - started) / config.epochs
    more = statistics.median(times[0]) - statistics.median(times[1])
    print(
        f"task object, {name}: {1e6 * more:.0f} us of an epoch of {1e3 * epoch:.1f} ms, "
        f"{100 * more / epoch:.2f} %"
    )


def right(scores: Tensor, y: Tensor) -> float:
    return 100.0 * float((scores.argmax(dim=1) == y).double().mean())


def compare_sizes(count: int, epochs: int, seeds: int) -> None:
    """Print accuracy on test graphs, time and epochs by batch size; and of batches dealt anew."""
    data = tasks.joined_graphs(*split(made_graphs(count)))
    fixed = FixedGraph(data)
    config = TrainingConfig(epochs=epochs, learning_rate=0.003, patience=epochs + 1)
    for size in (None, 256, 128, 64, 32, 16):
        task = tasks.graph_classification(batch_size=size)
        accuracies, ran, started = [], [], time.perf_counter()
        for seed in range(seeds):
            model = fresh(seed)
            ran.append(sgq.fit(model, fixed, config, task=task, seed=seed).epochs)
            accuracies.append(sgq.accuracy(model, fixed, data.test_mask, task=task))
        seconds = (time.perf_counter() - started) / seeds
        print(
            f"batches of {size}: test {statistics.mean(accuracies):.1f} ± "
            f"{statistics.stdev(accuracies):.1f} %, {statistics.mean(ran):.0f} epochs, "
            f"{seconds:.1f} s"
        )


def compare_partitions(count: int, epochs: int, seeds: int, size: int) -> None:
    """Print accuracy on validation graphs of batches dealt once, and dealt in each epoch."""
    parts = split(made_graphs(count))
    fixed = FixedGraph(tasks.joined_graphs(*parts))
    task = tasks.graph_classification(batch_size=size)
    config = TrainingConfig(epochs=epochs, learning_rate=0.003, patience=epochs + 1)
    once, anew = [], []
    train, val = (DataLoader(part, size, shuffle=True) for part in parts[:2])
    for seed in range(seeds):
        once.append(sgq.fit(fresh(seed), fixed, config, task=task, seed=seed).accuracy)
        anew.append(plain_training(fresh(seed), lambda: train, lambda: val, config, seed))
    for name, found in (("once", once), ("in each epoch", anew)):
        print(
            f"dealt {name}: validation {statistics.mean(found):.1f} ± "
            f"{statistics.stdev(found):.1f} %, {seeds} seeds"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer graphs, epochs and repeats")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--sizes", action="store_true", help="compare batch sizes")
    parser.add_argument("--partitions", action="store_true", help="compare ways of shuffling")
    parser.add_argument("--peak", choices=("ours", "plain", "whole"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    count, size = 200 if options.quick else options.graphs, options.batch_size
    if options.peak:
        subject = Subject(count, size, 2, degrees=True, trained=False)
        print(f"{peak_of(subject, options.peak):.1f}")
        return
    if options.sizes:
        compare_sizes(count, 3 if options.quick else 30, 2 if options.quick else 3)
        return
    if options.partitions:
        compare_partitions(count, 3 if options.quick else 30, 2 if options.quick else 4, size)
        return
    repeats = 2 if options.quick else 5
    for degrees in (True, False):
        print("a width for each degree bucket:" if degrees else "a width for each layer:")
        compare(Subject(count, size, 3 if options.quick else 15, degrees=degrees), repeats)
    compare_peaks(options, count)
    graphs = tasks.joined_graphs(*split(made_graphs(count)))
    task = tasks.graph_classification(batch_size=size)
    task_cost("graph classification", graphs, task, right, repeats)
    task_cost(
        "node classification",
        sgq.load_graph("digits"),
        tasks.node_classification(),
        right,
        repeats,
    )


if __name__ == "__main__":
    main()
