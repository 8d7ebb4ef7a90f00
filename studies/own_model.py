"""Your own model and graph: copy this file and change the two functions.

It runs by ``python own_model.py`` and by ``sgquant search --study own_model.py``.
"""

from __future__ import annotations

import argparse

import torch
from torch_geometric.data import Data
from torch_geometric.nn import GraphSAGE

import sgquant_optuna as sgq


def my_graph() -> Data:
    """Return any graph with x, edge_index, y, train_mask and val_mask."""
    return sgq.load_graph("digits")


def my_model(data: Data) -> torch.nn.Module:
    """Return any module with PyG convolutions that gives class scores, [N, C]."""
    classes = int(data.y.max()) + 1
    return GraphSAGE(data.num_features, 32, num_layers=2, out_channels=classes, dropout=0.5)


def study() -> sgq.OwnStudy:
    """Return both for ``sgquant search --study``, which seeds torch before each model."""
    data = my_graph()
    return sgq.OwnStudy(data=data, model=lambda seed: my_model(data))


def main() -> None:
    """Train, search and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-trials", type=int, default=40)
    parser.add_argument("--storage", help="database URL; storage/sgquant.db by default")
    options = parser.parse_args()

    data = my_graph()
    torch.manual_seed(0)
    model = my_model(data)
    sgq.fit(model, data, seed=0)
    objective = sgq.QuantizationObjective(model, data, max_drop=0.5, granularity="lwq+taq")
    found = sgq.create_study(objective, storage=options.storage, study_name="own-model", seed=0)
    found.optimize(objective, n_trials=max(options.n_trials - len(found.trials), 0))
    sgq.final_report(found, objective, data)
    print(sgq.report(found))


if __name__ == "__main__":
    main()
