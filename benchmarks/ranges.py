"""Accuracy of a GCN for each range estimator and rounding: the reason for the defaults.

Input features and hidden features have the same setting. The input has 1 to 4 bits, the hidden
features have 4. Each model is finetuned as in a trial, for several seeds of the training. A cell
of the table shows mean and standard deviation of the validation accuracy, in percent.

    python benchmarks/ranges.py --dataset PubMed --root FOLDER [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import warnings

from rich.console import Console
from rich.table import Table

from sgquant_optuna.graph.datasets import load_graph
from sgquant_optuna.graph.paper_models import make_model
from sgquant_optuna.graph.training import fit
from sgquant_optuna.graph.training_config import TrainingConfig
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.sites import BitWidths
from sgquant_optuna.search.objective import QuantizationObjective

INPUT_WIDTHS = (1, 2, 3, 4)
HIDDEN_WIDTH = 4
SETTINGS = {
    "paper: floor, minmax": QuantizerConfig.paper(),
    "nearest, minmax": QuantizerConfig(range_estimator="minmax"),
    "floor, least squares": QuantizerConfig(rounding="floor"),
    "nearest, percentile": QuantizerConfig(range_estimator="percentile"),
    "nearest, least squares (default)": QuantizerConfig(),
    "the same, a range a column": QuantizerConfig(axis="column"),
    "the same, a range a row": QuantizerConfig(axis="row"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, three settings")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--root")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    data = load_graph(options.dataset, options.root)
    settings = dict(list(SETTINGS.items())[:5:2]) if options.quick else SETTINGS
    seeds = 1 if options.quick else options.seeds

    results: dict[tuple[str, int], list[float]] = {}
    full: list[float] = []
    for seed in range(seeds):
        model = make_model("gcn", data.num_features, int(data.y.max()) + 1, seed=seed)
        fit(model, data, TrainingConfig(), seed=seed)
        for index, (name, config) in enumerate(settings.items()):
            objective = QuantizationObjective(
                model,
                data,
                granularity="lwq",
                candidates=INPUT_WIDTHS,
                quantizer=config,
                seed=seed,
            )
            if index == 0:
                full.append(objective.full_precision_accuracy)
            first, *hidden = objective.layout.sizes
            for width in INPUT_WIDTHS:
                bits = {first: width, **dict.fromkeys(hidden, HIDDEN_WIDTH)}
                accuracy = objective.measure(BitWidths(bits))
                results.setdefault((name, width), []).append(accuracy)

    table = Table(title=f"GCN on {options.dataset}, {seeds} seeds; full precision {spread(full)}")
    table.add_column("rounding, range")
    for width in INPUT_WIDTHS:
        table.add_column(f"input {width} bit", justify="right")
    for name in settings:
        table.add_row(name, *[spread(results[name, width]) for width in INPUT_WIDTHS])
    Console(width=110).print(table)


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


if __name__ == "__main__":
    main()
