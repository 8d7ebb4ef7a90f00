"""Budgets of bytes: how much of each a search uses, and its accuracy against uniform widths.

For each budget, a search is run; then fresh trainings compare its assignment with the widest
uniform one below the budget, and with the answer of one study to all budgets, by
``sgquant_optuna.answer``, without any training.

    python benchmarks/budgets.py                                    # GCN on digits
    python benchmarks/budgets.py --model gat --dataset Cora --root FOLDER
    python benchmarks/budgets.py --quick
"""

from __future__ import annotations

import argparse
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import optuna
from torch_geometric.data import Data

from sgquant_optuna import BitWidths, QuantizationObjective, answer, create_study, report
from sgquant_optuna.cli.plan_options import plan_of_options
from sgquant_optuna.search.trained_models import load_plan_graph, train_model, train_models
from sgquant_optuna.study.plan import SearchPlan

_FRESH = 2000  # far from the seeds of the searches and of their final reports

Measure = Callable[[BitWidths], tuple[list[float], list[float]]]
"""Drops on validation and on test nodes in percentage points, for each fresh training."""


@dataclass(frozen=True)
class Row:
    """An assignment for a budget; its size in bytes, drops in percentage points."""

    budget: float
    method: str
    memory: float
    bits: BitWidths


def measure_of(
    plan: SearchPlan, objective: QuantizationObjective, data: Data, seeds: int
) -> Measure:
    """Train models that no search saw, for all assignments."""
    fresh = range(_FRESH, _FRESH + seeds)
    models = [objective.calibrated(train_model(plan, data, seed)) for seed in fresh]

    def accuracies(bits: BitWidths) -> list[tuple[float, float]]:
        found = []
        for model, seed in zip(models, fresh, strict=True):
            tuned, result = model.finetune(bits, plan.finetuning, seed=seed)
            right = model.scores(tuned).argmax(dim=1) == data.y
            found.append((result.accuracy, 100 * float(right[data.test_mask].double().mean())))
        return found

    full = accuracies(objective.full_precision)

    def measure(bits: BitWidths) -> tuple[list[float], list[float]]:
        pairs = list(zip(full, accuracies(bits), strict=True))
        return [a[0] - b[0] for a, b in pairs], [a[1] - b[1] for a, b in pairs]

    return measure


def rows_of(
    plan: SearchPlan, objectives: Sequence[QuantizationObjective], uniform: dict[int, float]
) -> list[Row]:
    """Search each budget, from the largest on, whose study answers all of them, too."""
    rows, first = [], None
    for objective in objectives:
        budget = objective.config.budget_bytes
        assert budget is not None
        study = create_study(objective, storage=optuna.storages.InMemoryStorage(), seed=plan.seed)
        study.optimize(objective, n_trials=plan.n_trials)
        first = first or study
        width = max(width for width, memory in uniform.items() if memory <= budget)
        space = objective.search_space
        bits = space.from_params(space.uniform_params(width))
        rows.append(Row(budget, f"uniform, {width} bits", uniform[width], bits))
        found = report(study)
        rows.append(Row(budget, "search", found.honest.memory_bytes, found.bits))
        answered = answer(first, budget_bytes=budget)
        rows.append(Row(budget, "answer", answered.memory.memory_bytes, answered.bits))
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1 budget, 12 trials, few epochs")
    parser.add_argument("--model", default="gcn")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--root", default=None)
    parser.add_argument("--n-trials", type=int, default=None)
    parser.add_argument("--seeds", type=int, default=None, help="fresh trainings")
    parser.add_argument("--search-inputs", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    plan = plan_of_options(model=options.model, dataset=options.dataset)
    plan = replace(
        plan,
        n_trials=options.n_trials or (12 if options.quick else 48),
        training=plan.training.with_epochs(20) if options.quick else plan.training,
        models=1 if options.quick else 3,
        exact_inputs=not options.search_inputs,
    )
    data = load_plan_graph(plan, options.root)
    models = train_models(plan, data)
    plain = QuantizationObjective(models, data, plan)
    space = plain.search_space
    uniform = {w: plain.memory_bytes(space.uniform_params(w)) for w in plan.candidates}
    budgets = [round(math.sqrt(a * b)) for a, b in itertools.pairwise(uniform.values())]
    objectives = [
        QuantizationObjective(models, data, replace(plan, mode="budget", budget_bytes=budget))
        for budget in budgets[::-1][: 1 if options.quick else None]
    ]
    rows = rows_of(plan, objectives, uniform)
    measure = measure_of(plan, plain, data, options.seeds or (2 if options.quick else 5))
    print("| budget, bytes | method | bytes | used | drop, validation | drop, test |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        drops = " | ".join(f"{fmean(d):.2f} ± {stdev(d):.2f}" for d in measure(row.bits))
        print(
            f"| {row.budget:,.0f} | {row.method} | {row.memory:,.0f} "
            f"| {row.memory / row.budget:.1%} | {drops} |"
        )


if __name__ == "__main__":
    main()
