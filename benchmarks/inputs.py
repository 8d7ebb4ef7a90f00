"""Bytes of a graph's own features as they are, and with each row divided by its sum or length.

    python benchmarks/inputs.py --root FOLDER [--dataset Cora CiteSeer ...] [--quick]

Sums are those of PyG's ``NormalizeFeatures``. ``1 bit`` is the smallest store at 1 bit,
``exact`` the smallest one of the same values. The last columns are of a GCN whose searched sites
have 1 bit: honest memory, and the number of parameters. ``without`` leaves out the stores of rows
of one value. No model is trained.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from unittest.mock import patch

from rich.console import Console
from rich.table import Table
from torch.nn import functional
from torch_geometric.data import Data

from sgquant_optuna.attachment import input_contents
from sgquant_optuna.graph.datasets import load_graph
from sgquant_optuna.graph.paper_models import make_model
from sgquant_optuna.quantization.memory import FeatureLayout, honest_memory, site_store
from sgquant_optuna.quantization.sites import FULL_PRECISION
from sgquant_optuna.search.objective import QuantizationObjective
from sgquant_optuna.study.report import megabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the graph of digits alone")
    parser.add_argument("--dataset", nargs="+", default=["Cora", "CiteSeer", "PubMed"])
    parser.add_argument("--root")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    table = Table(title="The graph's own features, in degree buckets")
    table.add_column("graph")
    table.add_column("features")
    for column in ("1 bit", "exact", "exact store", "GCN, 1 bit", "parameters"):
        table.add_column(column, justify="right")
    for name in ["digits"] if options.quick else options.dataset:
        data = load_graph(name, options.root)
        x = data.x
        table.add_row(name, "as they are", *row(data))
        for norm, divided in (
            ("sum 1", x / x.sum(dim=1, keepdim=True).clamp(min=1)),
            ("length 1", functional.normalize(x, dim=1)),
        ):
            data.x = divided
            table.add_row(name, norm, *row(data))
            with patch.object(input_contents, "row_values", return_value=None):
                table.add_row(name, f"{norm}, without", *row(data))
    Console(width=130).print(table)


def row(data: Data) -> Iterator[str]:
    model = make_model("gcn", data.num_features, int(data.y.max()) + 1, seed=0)
    objective = QuantizationObjective(model, data)
    layout = objective.layout
    yield megabytes(input_nbytes(layout, 1))
    yield megabytes(input_nbytes(layout, FULL_PRECISION))
    yield " and ".join(sorted({store for store, _ in input_stores_at(layout, FULL_PRECISION)}))
    space = objective.search_space
    bits = space.from_params(dict.fromkeys(space.names, 1))
    yield megabytes(honest_memory(layout, bits).memory_bytes)
    yield str(len(space.names))


def input_nbytes(layout: FeatureLayout, bit_width: int) -> int:
    return sum(nbytes for _, nbytes in input_stores_at(layout, bit_width))


def input_stores_at(layout: FeatureLayout, bit_width: int) -> list[tuple[str, int]]:
    return [
        site_store(site, size, bit_width)
        for site, size in layout.sizes.items()
        if size.content is not None
    ]


if __name__ == "__main__":
    main()
