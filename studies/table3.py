"""Table III: every model of the paper on every data set, searched, trained anew and exported."""

from __future__ import annotations

import argparse
import time

from pairs import Pair, arguments, is_done, measure, pairs

import sgquant_optuna as sgq

UNIFORM = (8, 4, 2)
SECONDS, BYTES = "studies:processor_seconds", "studies:exported_bytes"


def main() -> None:
    """Search every pair, and keep in its study what the table says of it."""
    options = arguments(__doc__, n_trials=(8, 60), seeds=(2, 20))
    for pair in pairs(options):
        row(pair, options)


def row(pair: Pair, options: argparse.Namespace) -> None:
    """Make one row, or go on with it where it was stopped."""
    name, started = f"table3-{pair.model}-{pair.dataset}", time.process_time()
    if is_done(name, options.storage, BYTES):
        return
    objective = pair.objective(options.models, max_drop=0.5)
    study = sgq.create_study(objective, storage=options.storage, study_name=name, seed=0)
    measure(study, objective, options.n_trials)
    before = study.user_attrs.get(SECONDS, 0.0)
    study.set_user_attr(SECONDS, before + time.process_time() - started)
    sites = objective.layout.sizes
    simple = {f"uniform {width}": dict.fromkeys(sites, width) for width in UNIFORM}
    simple["inputs 1, hidden 8"] = {site: 1 if size.content else 8 for site, size in sites.items()}
    sgq.final_report(
        study,
        objective,
        pair.data,
        seeds=options.seeds,
        retrain=pair.trained,
        baselines={name: sgq.BitWidths(bits) for name, bits in simple.items()},
    )
    path = options.out / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    exported = sgq.export_study(study, path, objective=objective)
    study.set_user_attr(BYTES, exported.model.stored_nbytes)
    print(sgq.report(study), end="\n\n")


if __name__ == "__main__":
    main()
