"""The paper's models on its data sets, one study for each pair."""

from __future__ import annotations

import argparse

import sgquant_optuna as sgq

PAIRS = (("gcn", "Cora"), ("agnn", "CiteSeer"), ("gat", "PubMed"), ("gcn", "Computers"))


def main() -> None:
    """Search every pair, and print a report after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", help="folder of data sets; $SGQUANT_DATA or data by default")
    parser.add_argument("--only", metavar="MODEL/DATASET", help="one pair, for instance gcn/Cora")
    parser.add_argument("--n-trials", type=int, default=60)
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--storage", help="database URL; storage/sgquant.db by default")
    options = parser.parse_args()

    pairs = [tuple(options.only.split("/"))] if options.only else PAIRS
    for name, dataset in pairs:
        usual = sgq.paper_training(name, dataset)
        data = sgq.load_graph(dataset, options.root, normalize_features=usual.normalize_features)
        model = sgq.make_model(name, data.num_features, int(data.y.max()) + 1, seed=0)
        sgq.fit(model, data, usual.training, seed=0)
        objective = sgq.QuantizationObjective(model, data, max_drop=options.max_drop)
        study = sgq.create_study(
            objective, storage=options.storage, study_name=f"paper-{name}-{dataset}", seed=0
        )
        study.optimize(objective, n_trials=max(options.n_trials - len(study.trials), 0))
        sgq.final_report(study, objective, data)
        print(sgq.report(study), end="\n\n")


if __name__ == "__main__":
    main()
