"""Try every node-level convolution of the installed PyG, and many whole models, from end to end.

Each is trained for some epochs on a small graph. Then it gets quantizers, is compared with the
plain model at 32 bits, searched for two trials, exported, and run packed.

    python benchmarks/coverage_page.py            writes docs/coverage.md
    python benchmarks/coverage_page.py --quick    prints some rows
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import optuna
import torch
import torch_geometric
from coverage_models import CONVOLUTIONS, WHOLE_MODELS, Make
from torch import nn
from torch_geometric.data import Data

import sgquant_optuna as sgq
from sgquant_optuna.graph.forward_pass import forward
from sgquant_optuna.graph.model_copies import copy_model
from sgquant_optuna.quantization.sites import BitWidths

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
STEPS = ("attach", "equal at 32 bits", "search", "export", "packed equal")
QUICK = ("GCNConv", "GATConv", "SGConv", "APPNP", "GCN2Conv", "HGTConv", "GCN, jk=lstm")
TOLERANCE = 1e-5
Cells = dict[str, str]
"""Result of each step: ``"yes"``, or the reason why not."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="some rows, printed only")
    options = parser.parse_args()
    if options.quick:
        print(page(QUICK))
    else:
        PAGE.write_text(page())


def page(names: tuple[str, ...] | None = None) -> str:
    """Try models and return the page; only some of them if ``names`` are given."""
    reasons: dict[str, int] = {}
    tables = [
        f"## {title}\n\n" + _table(dict(_tried(models, names)), reasons)
        for title, models in (("Convolutions", CONVOLUTIONS), ("Whole models", WHOLE_MODELS))
    ]
    lines = [f"{number}. {reason}" for reason, number in reasons.items()]
    versions = f"PyG {torch_geometric.__version__}, torch {torch.__version__.split('+')[0]}"
    head = f"""# Which models work

Every convolution of `torch_geometric.nn.conv` in a model of two layers and a linear one, and whole
models, on a graph of 60 nodes ({versions}).

    python benchmarks/coverage_page.py

*Attach*: quantizers are attached and calibrated. *Equal at 32 bits*: the scores are bit-identical
to the plain model's. *Search*: two trials with three epochs of finetuning each. *Export*: a model
with 4 bits everywhere is written as a packed file. *Packed equal*: the model loaded from it gives
the same scores, to {TOLERANCE:g} of the largest. A number in brackets names the reason below.
"""
    return "\n".join([head, *tables, "## Reasons\n", *lines, ""])


def _table(rows: Mapping[str, Cells], reasons: dict[str, int]) -> str:
    lines = [f"| | {' | '.join(STEPS)} |", "|---" * (len(STEPS) + 1) + "|"]
    for name, cells in rows.items():
        shown = []
        for step in STEPS:
            cell = cells[step]
            if cell != "yes":
                cell = f"no ({reasons.setdefault(cell, len(reasons) + 1)})"
            shown.append(cell)
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _tried(
    models: Mapping[str, Make | str], names: tuple[str, ...] | None
) -> Iterator[tuple[str, Cells]]:
    for name, make in models.items():
        if names is None or name in names:
            yield name, dict.fromkeys(STEPS, make) if isinstance(make, str) else cells_of(make)


def cells_of(make: Make) -> Cells:
    """Take one model through all steps; the steps after one that fails have its reason."""
    cells: Cells = {}
    torch.manual_seed(0)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        try:
            data = small_graph()
            model = make()
            forward(model.eval(), data)  # makes the weights of lazy layers
            sgq.fit(model, data, sgq.TrainingConfig(epochs=5))
            run = _Steps(model, data, Path(folder) / "model.safetensors")
        except Exception as error:
            return dict.fromkeys(STEPS, f"the plain model fails: {_line(error)}")
        for step, check in zip(STEPS, run.all(), strict=True):
            try:
                cells[step] = check()
            except Exception as error:
                cells[step] = _line(error)
            if cells[step] != "yes":
                break
    return {step: cells.get(step, cells[list(cells)[-1]]) for step in STEPS}


class _Steps:
    def __init__(self, model: nn.Module, data: Data, path: Path) -> None:
        self.model, self.data, self.path = model, data, path
        self.quantized = copy_model(model)

    def all(self) -> list[Callable[[], str]]:
        return [self.attach, self.equal, self.search, self.export, self.packed_equal]

    def attach(self) -> str:
        sgq.attach(self.quantized)
        sgq.calibrate(self.quantized, self.data, candidates=(1, 4), forward=forward)
        return "yes"

    @torch.no_grad()
    def equal(self) -> str:
        torch.manual_seed(0)
        expected = forward(self.model.eval(), self.data)
        torch.manual_seed(0)
        found = forward(self.quantized.eval(), self.data)
        return "yes" if found.equal(expected) else "scores differ at 32 bits"

    def search(self) -> str:
        self.objective = sgq.QuantizationObjective(
            self.model,
            self.data,
            candidates=(1, 4),
            granularity="lwq",
            finetuning=sgq.TrainingConfig(epochs=3),
        )
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.optimize(self.objective, n_trials=2)
        return "yes"

    def export(self) -> str:
        objective = self.objective
        bits = BitWidths(dict.fromkeys(objective.layout.sizes, 4))
        self.finetuned, _ = objective.finetune(bits, seed=0)
        data = objective.graph.data
        sgq.export_packed(self.finetuned, data, self.path, layout=objective.layout)
        return "yes"

    @torch.no_grad()
    def packed_equal(self) -> str:
        data = self.objective.graph.data
        expected = forward(self.finetuned.eval(), data)
        found = sgq.load_packed(self.path, self.model)(data)
        difference = float((found - expected).abs().max() / expected.abs().max())
        return "yes" if difference <= TOLERANCE else f"scores differ by more than {TOLERANCE:g}"


def small_graph() -> Data:
    """A graph of 60 nodes in three classes, with positions, normals and features of edges."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.rand(3, 12, generator=generator)[y] + 0.3 * torch.rand(60, 12, generator=generator)
    source, target = torch.randint(60, (2, 360), generator=generator)
    keep = (y[source] == y[target]) & (source != target)
    edge_index = torch.stack([source[keep], target[keep]]).unique(dim=1)
    data = Data(x=x, edge_index=edge_index, y=y)
    data.pos = torch.rand(60, 3, generator=generator)
    data.normal = torch.rand(60, 3, generator=generator)
    data.batch = torch.zeros(60, dtype=torch.long)
    data.edge_attr = torch.rand(data.num_edges, 3, generator=generator)
    data.edge_type = torch.arange(data.num_edges) % 2
    data.node_type = torch.arange(60) % 2
    order = torch.randperm(60, generator=generator)
    for name, part in zip(("train", "val", "test"), order.tensor_split(3), strict=True):
        mask = torch.zeros(60, dtype=torch.bool)
        mask[part] = True
        data[f"{name}_mask"] = mask
    return data


def _line(error: Exception) -> str:
    line = " ".join(str(error).split("\n")[0].split()).replace("|", "/")
    line = line if len(line) <= 200 else f"{line[:200].rpartition(' ')[0]} ..."
    return f"`{type(error).__name__}`: {line or 'without a message'}"


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    main()
