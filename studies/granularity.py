"""What each granularity adds: the same model and graph, one study for each combination."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

import sgquant_optuna as sgq

GRANULARITIES = ("uniform", "lwq", "cwq", "taq", "lwq+cwq", "lwq+taq", "cwq+taq", "lwq+cwq+taq")


def main() -> None:
    """Search every granularity with the same number of trials, and compare the best."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gat", choices=list(sgq.MODELS))
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--root", help="folder of data sets; $SGQUANT_DATA or data by default")
    parser.add_argument("--n-trials", type=int, default=40)
    parser.add_argument("--storage", help="database URL; storage/sgquant.db by default")
    options = parser.parse_args()

    usual = sgq.paper_training(options.model, options.dataset)
    data = sgq.load_graph(
        options.dataset, options.root, normalize_features=usual.normalize_features
    )
    model = sgq.make_model(options.model, data.num_features, int(data.y.max()) + 1, seed=0)
    sgq.fit(model, data, usual.training, seed=0)
    table = Table(
        "granularity", "parameters", "trials", "drop at most", "saving, honest", "saving, paper"
    )
    for granularity in GRANULARITIES:
        objective = sgq.QuantizationObjective(model, data, granularity=granularity)
        name = f"granularity-{options.model}-{options.dataset}-{granularity}"
        study = sgq.create_study(objective, storage=options.storage, study_name=name, seed=0)
        # A small space is measured whole: more trials would repeat it.
        size = len(objective.search_space.candidates) ** len(objective.search_space.names)
        budget = min(options.n_trials, size) - len(study.trials)
        study.optimize(objective, n_trials=max(budget, 0))
        found = sgq.report(study)
        table.add_row(
            granularity,
            str(len(objective.search_space.names)),
            str(found.num_measured),
            f"{found.result.drop_bound:.2f}",
            f"{found.honest.saving:.1f}x",
            f"{found.paper.saving:.1f}x",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
