"""Measure all configurations of a small search space with our own objective, and store them.

A GCN of two layers with three degree buckets each and bit widths 1, 2, 4 and 8 has 4,096
configurations. Finetuning is short. Rounding and ranges are the paper's by default, because they
lose accuracy at few bits. With the defaults of this package, most configurations have nearly the
same accuracy, which leaves little to search.

    python benchmarks/make_tables.py --dataset Cora --max-drop 1 --root FOLDER
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from measured_table import make_table

from sgquant_optuna.graph.datasets import load_graph
from sgquant_optuna.graph.paper_models import make_model
from sgquant_optuna.graph.training import fit
from sgquant_optuna.graph.training_config import FINETUNING, TrainingConfig
from sgquant_optuna.quantization.memory import honest_memory
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.search.objective import QuantizationObjective

FOLDER = Path(__file__).parent / "data"
NUM_BUCKETS = 3
QUANTIZERS = {"paper": QuantizerConfig.paper(), "default": QuantizerConfig()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="64 configurations, not kept")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--root", help="folder of data sets; not kept in the table")
    parser.add_argument("--max-drop", type=float, default=0.5, help="limit of the accuracy drop")
    parser.add_argument("--quantizer", choices=QUANTIZERS, default="paper")
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each finetuning")
    parser.add_argument("--seeds", type=int, default=2, help="finetunings of each configuration")
    options = parser.parse_args()
    folder = FOLDER
    if options.quick:
        folder = Path(tempfile.mkdtemp())
        options.widths, options.epochs, options.seeds = [2, 8], 1, 1
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    torch.set_num_threads(1)  # on graphs of this size, several threads are slower

    data = load_graph(options.dataset, options.root)
    model = make_model("gcn", data.num_features, int(data.y.max()) + 1, seed=0)
    fit(model, data, TrainingConfig(), seed=0)
    objectives = [
        QuantizationObjective(
            model,
            data,
            max_drop=options.max_drop,
            granularity="lwq+taq",
            candidates=options.widths,
            degree_edges=NUM_BUCKETS,
            quantizer=QUANTIZERS[options.quantizer],
            finetuning=FINETUNING.with_epochs(options.epochs),
            seed=seed,
        )
        for seed in range(options.seeds)
    ]
    space = objectives[0].search_space
    names = list(space.distributions)
    layout = objectives[0].layout
    full_precision = [objective.full_precision_accuracy for objective in objectives]

    def measure(bits: tuple[int, ...]) -> tuple[float, list[float]]:
        params = dict(zip(names, bits, strict=True))
        widths = space.from_params(params)
        drops = [
            full - objective.measure(widths)
            for full, objective in zip(full_precision, objectives, strict=True)
        ]
        return 100 / honest_memory(layout, widths).saving, drops

    kept = ("dataset", "max_drop", "quantizer", "epochs", "seeds")
    settings = [f"--{key.replace('_', '-')} {getattr(options, key)}" for key in kept]
    settings.append("--widths " + " ".join(map(str, options.widths)))
    started = time.perf_counter()
    path = folder / f"table_gcn_{options.dataset.lower()}_{options.quantizer}.npz"
    make_table(
        path,
        [sorted(options.widths)] * len(names),
        measure,
        names=names,
        max_drop=options.max_drop,
        command=" ".join(["python benchmarks/make_tables.py", *settings]),
        log=lambda line: print(line, flush=True),
    )
    seconds = time.perf_counter() - started
    print(f"{path.name}: {os.path.getsize(path)} bytes, {seconds:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
