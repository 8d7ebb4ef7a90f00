"""Compare samplers with two objectives, memory and accuracy drop, by the hypervolume they reach.

The hypervolume is given as a share of that of the true front.

    python benchmarks/two_objectives.py
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from synthetic_problems import PROBLEMS

from sgquant_optuna.sampler import SGQuantSampler

Floats = npt.NDArray[np.float64]
Known = Callable[[dict[str, Any]], float]
Make = Callable[[int, dict[str, BaseDistribution], Known], BaseSampler]

SAMPLERS: dict[str, Make] = {
    "Random": lambda seed, space, known: optuna.samplers.RandomSampler(seed),
    "NSGA-II": lambda seed, space, known: optuna.samplers.NSGAIISampler(
        population_size=20, seed=seed
    ),
    "TPE": lambda seed, space, known: optuna.samplers.TPESampler(multivariate=True, seed=seed),
    "GP": lambda seed, space, known: optuna.samplers.GPSampler(seed=seed),
    "default": lambda seed, space, known: SGQuantSampler(space, known_objective=known, seed=seed),
}
USEFUL_DROP = 5.0  # points; most area of the whole front is at drops that nobody accepts


def hypervolume(memory: Floats, drop: Floats, end: float, top: float) -> float:
    """Area that points dominate below the reference point (end, top)."""
    order = np.lexsort((drop, memory))
    area, height = 0.0, top
    for x, y in zip(memory[order], drop[order], strict=True):
        if x < end and y < height:
            area += (end - x) * (height - y)
            height = float(y)
    return area


def run(name: str, sampler: str, seed: int, n_trials: int, step: int) -> tuple[Floats, float]:
    """Run one study; return the shares every ``step`` trials, and the time to ask in ms."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    problem = PROBLEMS[name](seed)
    ordinal = sampler != "default"
    space = problem.space(ordinal=ordinal)

    def known(params: dict[str, Any]) -> float:
        return float(problem.memory[problem.row_of(params, ordinal=ordinal)])

    study = optuna.create_study(
        directions=["minimize"] * 2, sampler=SAMPLERS[sampler](seed, space, known)
    )
    rows, asked = [], 0.0
    for _ in range(n_trials):
        started = time.process_time()
        trial = study.ask(space)
        asked += time.process_time() - started
        row = problem.row_of(trial.params, ordinal=ordinal)
        study.tell(trial, [float(problem.memory[row]), float(problem.drop[row])])
        rows.append(row)
    end, tops = float(problem.memory.max()), (float(problem.drop.max()), USEFUL_DROP)
    shares = [
        [
            hypervolume(problem.memory[rows[:k]], problem.drop[rows[:k]], end, top)
            / hypervolume(problem.memory, problem.drop, end, top)
            for k in range(step, n_trials + 1, step)
        ]
        for top in tops
    ]
    return np.array(shares), 1000 * asked / n_trials


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 seeds, 50 trials")
    parser.add_argument("--problem", default="smooth", choices=PROBLEMS)
    parser.add_argument("--samplers", nargs="*", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--n-trials", type=int, default=None)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    seeds = options.seeds or (2 if options.quick else 10)
    n_trials = options.n_trials or (50 if options.quick else 100)
    step = n_trials // 2

    heads = [
        f"{kind} @{k}"
        for kind in ("whole front", f"drops below {USEFUL_DROP:g}")
        for k in (step, 2 * step)
    ]
    print(f"| sampler | {' | '.join(heads)} | ask ms |")
    print("|---" * (2 + len(heads)) + "|")
    with ProcessPoolExecutor(options.processes) as pool:
        for sampler in options.samplers:
            runs = [
                pool.submit(run, options.problem, sampler, seed, n_trials, step)
                for seed in range(seeds)
            ]
            shares = 100 * np.stack([r.result()[0].ravel() for r in runs])
            low, middle, high = np.quantile(shares, [0.25, 0.5, 0.75], axis=0)
            cells = [
                f"{m:.1f} ({a:.1f}-{b:.1f})" for a, m, b in zip(low, middle, high, strict=True)
            ]
            asked = np.mean([r.result()[1] for r in runs])
            print(f"| {sampler} | {' | '.join(cells)} | {asked:.1f} |", flush=True)


if __name__ == "__main__":
    main()
