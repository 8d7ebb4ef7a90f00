"""Compare the confidence of ``best_for`` with the truth, on noisy problems.

A study of 100 trials is measured with a noise of 0.2 points. Then ``best_for`` finds the least
memory for the limit of the study and for another one. The true drop of its answer is known.

    python benchmarks/answers.py
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import get_args

import numpy as np
import optuna
from synthetic_problems import MAX_DROP, PROBLEMS

from sgquant_optuna.sampler import SGQuantSampler, best_for
from sgquant_optuna.sampler.cost_model import DEFAULT_COST_MODEL, CostModelName

CONFIDENCES = (0.5, 0.8, 0.9, 0.95)
LIMITS = (MAX_DROP, 2 * MAX_DROP)


@dataclass(frozen=True)
class Row:
    """One answer: whether it truly holds, and its percent above the least memory that does."""

    problem: str
    limit: float
    method: str
    answered: bool
    holds: bool
    gap: float


def answers_of(
    name: str, seed: int, noise: float, n_trials: int, cost_models: Sequence[CostModelName]
) -> list[Row]:
    """Run one study, and answer each limit by each method."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    problem = PROBLEMS[name](seed)
    space = problem.space(ordinal=False)

    def memory_of(params: dict[str, object]) -> float:
        return float(problem.memory[problem.row_of(params, ordinal=False)])

    rng = np.random.default_rng([seed, 1])
    sampler = SGQuantSampler(space, known_objective=memory_of, seed=seed)
    study = optuna.create_study(sampler=sampler)
    rows, measured = [], []
    for _ in range(n_trials):
        trial = study.ask(space)
        row = problem.row_of(trial.params, ordinal=False)
        drop = float(problem.drop[row] + noise * rng.standard_normal())
        trial.set_user_attr("accuracy_drop", drop)
        trial.set_constraint("drop", drop - MAX_DROP)
        study.tell(trial, float(problem.memory[row]))
        rows.append(row)
        measured.append(drop)

    results = []
    for limit in LIMITS:
        optimum = float(problem.memory[problem.drop <= limit].min())
        cost = np.where(np.array(measured) <= limit, problem.memory[rows], np.inf)
        answers: dict[str, int | None] = {"best trial as measured": rows[int(np.argmin(cost))]}
        for cost_model, confidence in product(cost_models, CONFIDENCES):
            answer = best_for(
                study,
                known_objective=memory_of,
                max_drop=limit,
                confidence=confidence,
                cost_model=cost_model,
            )
            found = None if answer is None else problem.row_of(answer.params, ordinal=False)
            answers[f"{cost_model}, {confidence:.0%}"] = found
        for method, at in answers.items():
            gap = np.inf if at is None else 100 * (problem.memory[at] / optimum - 1)
            holds = at is not None and bool(problem.drop[at] <= limit)
            results.append(Row(name, limit, method, at is not None, holds, float(gap)))
    return results


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 seeds, 50 trials")
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--n-trials", type=int, default=None)
    parser.add_argument("--noise", type=float, default=0.2)
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS), choices=PROBLEMS)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--cost-models",
        nargs="*",
        default=[DEFAULT_COST_MODEL],
        choices=get_args(CostModelName),
        help="of best_for; the studies use the default",
    )
    options = parser.parse_args()
    seeds = options.seeds or (2 if options.quick else 20)
    n_trials = options.n_trials or (50 if options.quick else 100)
    tasks = [
        (name, seed, options.noise, n_trials, options.cost_models)
        for name in options.problems
        for seed in range(seeds)
    ]
    with ProcessPoolExecutor(options.processes) as pool:
        rows = [row for rows in pool.map(answers_of, *zip(*tasks, strict=True)) for row in rows]

    print(f"| limit | method | {' | '.join(options.problems)} | all | memory above optimum |")
    print("|---" * (4 + len(options.problems)) + "|")
    for limit, method in dict.fromkeys((r.limit, r.method) for r in rows):
        group = [r for r in rows if (r.limit, r.method) == (limit, method)]
        cells = [_share([r for r in group if r.problem == name]) for name in options.problems]
        low, middle, high = np.quantile(
            [r.gap for r in group], [0.25, 0.5, 0.75], method="nearest"
        )
        print(
            f"| {limit} | {method} | {' | '.join(cells)} | {_share(group)} "
            f"| {middle:.1f} % ({low:.1f} to {high:.1f}) |"
        )


def _share(rows: list[Row]) -> str:
    answered = [r for r in rows if r.answered]
    return f"{sum(r.holds for r in answered)} of {len(answered)}"


if __name__ == "__main__":
    main()
