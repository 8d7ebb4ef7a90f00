"""Find the least bits of six layers whose summed error stays below a limit."""

from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

import optunahub

WIDTHS = (1, 2, 4, 8)
NAMES = [f"layer{i}" for i in range(6)]


def memory(params: dict[str, Any]) -> float:
    """Bits of all layers: known exactly, so the sampler need not learn it."""
    return float(sum(params.values()))


def objective(trial: optuna.Trial) -> float:
    """Return the memory, with the error as a constraint."""
    widths = {name: trial.suggest_categorical(name, WIDTHS) for name in NAMES}
    trial.set_constraint("error", sum(2.0**-width for width in widths.values()) - 0.8)
    return memory(widths)


if __name__ == "__main__":
    module = optunahub.load_module("samplers/sgquant")
    space: dict[str, BaseDistribution] = {name: CategoricalDistribution(WIDTHS) for name in NAMES}
    sampler = module.SGQuantSampler(space, known_objective=memory, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=40)
    print(study.best_value, study.best_params)
