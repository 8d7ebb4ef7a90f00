"""Figure 8: the saving after each trial, by our cost models, the paper's loop, TPE and random."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import optuna
from pairs import arguments, measure, pairs
from rich.console import Console
from rich.table import Table

import sgquant_optuna as sgq

STEPS = (5, 10, 20, 30, 50, 100)


def samplers(objective: sgq.QuantizationObjective, seed: int) -> dict[str, Any]:
    """Return the samplers to compare, by name."""
    return {
        "cost models": sgq.default_sampler(objective, seed=seed),
        "paper": sgq.default_sampler(objective, seed=seed, acquisition="paper"),
        "TPE": optuna.samplers.TPESampler(seed=seed),
        "random": optuna.samplers.RandomSampler(seed=seed),
    }


def main() -> None:
    """Search with every sampler from several seeds, each search a study of its own."""
    options = arguments(__doc__, only=["agnn/Cora"], n_trials=(8, 100), seeds=(2, 10))
    steps = [step for step in STEPS if step <= options.n_trials]
    for pair in pairs(options):
        objective = pair.objective(options.models)
        found: dict[str, list[list[float]]] = {}
        for seed in range(options.seeds):
            for name, sampler in samplers(objective, seed).items():
                title = f"figure8-{pair.model}-{pair.dataset}-{name}-{seed}"
                study = sgq.create_study(
                    objective, storage=options.storage, study_name=title, sampler=sampler
                )
                measure(study, objective, options.n_trials)
                found.setdefault(name, []).append(savings(study, steps))
        table = Table(f"{pair.model} on {pair.dataset}", *(f"{step} trials" for step in steps))
        for name, runs in found.items():
            means = [fmean(column) for column in zip(*runs, strict=True)]
            table.add_row(name, *(f"{mean:.1f}x" for mean in means))
        Console().print(table)


def savings(study: optuna.Study, steps: list[int]) -> list[float]:
    """Return the best saving within the limit after so many trials; 1 if there is none yet."""
    limit = sgq.report(study).record.limit
    found = [sgq.TrialResult.of(trial.user_attrs) for trial in study.trials]
    best = [one.saving if one and limit.is_feasible(one) else 1.0 for one in found]
    return [max(best[:step]) for step in steps]


if __name__ == "__main__":
    main()
