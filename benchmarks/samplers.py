"""Compare samplers on problems whose optimum is known: gap against trials, and time to ask.

``python benchmarks/samplers.py --quick`` prints a table in some minutes, with 2 seeds instead of
20; ``--plots FOLDER`` draws it. The gap of a study after k trials is its least feasible memory
above the optimum, in percent, by the true drop: with noise, a configuration that was only measured
as feasible does not count. Problems (a) are synthetic. Problems (b) are tables of our own
objective, measured exhaustively by ``make_tables.py``, in ``benchmarks/data``. ``--workers`` keeps
several trials in flight, and ``--patience`` tells what ending a search early would cost.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import optuna
from measured_table import TablePath, load_table
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from patience import summarise_stops
from synthetic_problems import PROBLEMS, WIDE_PROBLEMS, Problem, WideProblem

from sgquant_optuna.sampler import SGQuantSampler
from sgquant_optuna.sampler.cost_model import CostModelName

Space = dict[str, BaseDistribution]
Known = Callable[[dict[str, object]], float]


@dataclass(frozen=True)
class Contender:
    """A sampler, and whether the ordinal encoding of widths suits it best."""

    make: Callable[[int, Space, Known], BaseSampler]
    ordinal: bool


def _ours(**options: Any) -> Contender:
    def make(seed: int, space: Space, known: Known) -> BaseSampler:
        return SGQuantSampler(space, known_objective=known, seed=seed, **options)

    return Contender(make, ordinal=False)


CONTENDERS = {
    "Random": Contender(lambda seed, space, known: optuna.samplers.RandomSampler(seed), True),
    "NSGA-II": Contender(
        lambda seed, space, known: optuna.samplers.NSGAIISampler(population_size=20, seed=seed),
        True,
    ),
    "TPE": Contender(
        lambda seed, space, known: optuna.samplers.TPESampler(multivariate=True, seed=seed), True
    ),
    "GP": Contender(lambda seed, space, known: optuna.samplers.GPSampler(seed=seed), True),
    "paper": _ours(acquisition="paper"),
    "default": _ours(),
    **{name: _ours(cost_model=name) for name in get_args(CostModelName)},
}


@dataclass(frozen=True)
class Task:
    """One study to run."""

    problem: str
    noise: float | None  # None: each trial measures one of the table's training seeds
    sampler: str
    seed: int
    n_trials: int
    table: TablePath | None
    workers: int = 1


@dataclass(frozen=True)
class Outcome:
    """Result of one study.

    Args:
        task:
            Study that was run.
        gaps:
            Percent above the optimum after each trial; NaN while nothing feasible is known.
        ask_ms:
            Mean processor time to ask, in milliseconds; it does not depend on other processes.
        chosen_drop:
            True drop of the least memory that was measured as feasible, in percentage points.
        duplicates:
            Trials that repeated an earlier configuration.
        gains:
            Expected gain of each trial as the sampler recorded it, a share of the best known
            memory; NaN where it did not.
    """

    task: Task
    gaps: np.ndarray
    ask_ms: float
    chosen_drop: float
    duplicates: int
    gains: np.ndarray


def run(task: Task) -> Outcome:
    """Run one study."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = None if task.table is None else load_table(task.table)
    problem = _synthetic(task.problem, task.seed) if table is None else table[0]
    contender = CONTENDERS[task.sampler]
    space = problem.space(ordinal=contender.ordinal)

    def memory_of(params: dict[str, object]) -> float:
        return problem.memory_of(params, ordinal=contender.ordinal)

    def drop_of(params: dict[str, object]) -> float:
        return problem.drop_of(params, ordinal=contender.ordinal)

    def measured_drop(params: dict[str, object]) -> float:
        if table is not None:
            measured, repeats = table
            return float(noise.choice(repeats[measured.row_of(params, ordinal=contender.ordinal)]))
        return drop_of(params) + (task.noise or 0.0) * noise.standard_normal()

    noise = np.random.default_rng([task.seed, 1])
    study = optuna.create_study(sampler=contender.make(task.seed, space, memory_of))
    asked, memory, drops, violations = 0.0, [], [], []
    in_flight: deque[optuna.Trial] = deque()
    for number in range(task.n_trials + task.workers - 1):
        if number < task.n_trials:
            started = time.process_time()
            in_flight.append(study.ask(space))
            asked += time.process_time() - started
        if number < task.workers - 1:
            continue
        trial = in_flight.popleft()
        memory.append(memory_of(trial.params))
        drops.append(drop_of(trial.params))
        violations.append(measured_drop(trial.params) - problem.max_drop)
        trial.set_constraint("drop", violations[-1])
        # The plain memory, not the penalised value that our objective shows on the dashboard: a
        # penalty would spoil the scale that GP learns.
        study.tell(trial, memory[-1])
    order, truth = np.array(memory), np.array(drops)
    best = np.fmin.accumulate(np.where(truth <= problem.max_drop, order, np.nan))
    chosen = int(np.argmin(np.where(np.array(violations) <= 0, order, np.inf)))
    trials = study.get_trials(deepcopy=False)
    return Outcome(
        task,
        100 * (best / problem.optimum - 1),
        1000 * asked / task.n_trials,
        float(truth[chosen]),
        len(trials) - len({tuple(trial.params.values()) for trial in trials}),
        np.array([t.user_attrs.get("predicted", {}).get("gain", np.nan) for t in trials]),
    )


@lru_cache(maxsize=1)
def _synthetic(name: str, seed: int) -> Problem | WideProblem:
    """Make a problem once for all samplers, which follow each other in the list of tasks."""
    return (PROBLEMS | WIDE_PROBLEMS)[name](seed)


def summarise(outcomes: Sequence[Outcome], checkpoints: Sequence[int]) -> list[str]:
    """Return a Markdown table with a line for each problem and sampler."""
    heads = [f"gap @{k}" for k in checkpoints]
    lines = [
        "| problem | noise | sampler | " + " | ".join(heads) + " | trials to 5 % | ask CPU ms "
        "| drop of best | repeats |",
        "|---" * (len(heads) + 7) + "|",
    ]
    groups: dict[tuple[str, float | None, str], list[Outcome]] = {}
    for outcome in outcomes:
        task = outcome.task
        groups.setdefault((task.problem, task.noise, task.sampler), []).append(outcome)
    for (problem, noise, sampler), group in groups.items():
        gaps = np.stack([o.gaps for o in group])
        cells = [_quartiles(gaps[:, k - 1]) for k in checkpoints]
        reached = [trials_to(o.gaps, 5.0) for o in group]
        lines.append(
            f"| {problem.removeprefix('table_')} | {'-' if noise is None else noise} "
            f"| {sampler} | {' | '.join(cells)} | {_quartiles(reached, 0)} "
            f"| {np.mean([o.ask_ms for o in group]):.1f} "
            f"| {np.median([o.chosen_drop for o in group]):.2f} "
            f"| {np.mean([o.duplicates for o in group]):.1f} |"
        )
    return lines


def compare(outcomes: Sequence[Outcome], baseline: str) -> list[str]:
    """Return a Markdown table of the trials to 5 %, less those of a sampler on the same seeds.

    A study that does not reach 5 % counts as one trial more than it has.
    """
    lines = ["| problem | noise | sampler | trials to 5 % less those of " + baseline + " |"]
    lines.append("|---" * 4 + "|")
    trials: dict[tuple[str, float | None], dict[str, list[float]]] = {}
    for outcome in outcomes:
        task = outcome.task
        of_problem = trials.setdefault((task.problem, task.noise), {})
        reached = min(trials_to(outcome.gaps, 5.0), task.n_trials + 1.0)
        of_problem.setdefault(task.sampler, []).append(reached)
    for (problem, noise), of_problem in trials.items():
        for sampler in (name for name in of_problem if name != baseline):
            difference = np.subtract(of_problem[sampler], of_problem[baseline])
            error = difference.std(ddof=1) / len(difference) ** 0.5
            lines.append(
                f"| {problem.removeprefix('table_')} | {'-' if noise is None else noise} "
                f"| {sampler} | {difference.mean():+.1f} +- {error:.1f} |"
            )
    return lines


def plot(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Draw median and interquartile range of the gap against trials, one PNG a problem."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("--plots needs matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    for problem, noise in dict.fromkeys((o.task.problem, o.task.noise) for o in outcomes):
        figure, axes = plt.subplots(figsize=(7, 4.5))
        for sampler in CONTENDERS:
            group = [
                o.gaps
                for o in outcomes
                if (o.task.problem, o.task.noise, o.task.sampler) == (problem, noise, sampler)
            ]
            if not group:
                continue
            gaps = np.nan_to_num(np.stack(group), nan=1000.0)
            low, middle, high = np.quantile(gaps, [0.25, 0.5, 0.75], axis=0, method="nearest")
            trials = np.arange(1, gaps.shape[1] + 1)
            (line,) = axes.plot(trials, middle, label=sampler)
            axes.fill_between(trials, low, high, alpha=0.15, color=line.get_color())
        axes.set(xlabel="trials", ylabel="gap to the optimum (%)", ylim=(0, 100))
        name = problem.removeprefix("table_")
        axes.set_title(name if noise is None else f"{name}, noise {noise} points")
        axes.legend()
        figure.tight_layout()
        suffix = "" if noise is None else f"_{noise}"
        figure.savefig(folder / f"samplers_{name}{suffix}.png", dpi=100)
        plt.close(figure)


def _quartiles(values: Sequence[float] | np.ndarray, digits: int = 1) -> str:
    """Median and quartiles; a study without anything feasible counts as infinite."""
    finite = np.where(np.isnan(values), np.inf, values)
    low, middle, high = np.quantile(finite, [0.25, 0.5, 0.75], method="nearest")
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def trials_to(gaps: np.ndarray, limit: float) -> float:
    reached = np.flatnonzero(gaps <= limit)
    return float(reached[0] + 1) if len(reached) else float("inf")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 seeds, 50 trials")
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--n-trials", type=int, default=None)
    parser.add_argument("--samplers", nargs="*", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument(
        "--problems", nargs="*", default=list(PROBLEMS), choices=[*PROBLEMS, *WIDE_PROBLEMS]
    )
    parser.add_argument("--noise", nargs="*", type=float, default=[0.0, 0.2])
    parser.add_argument("--table", type=Path, nargs="*", default=None, help="files of part (b)")
    parser.add_argument("--workers", type=int, default=1, help="trials in flight")
    parser.add_argument("--patience", type=int, nargs="*", default=[])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--against", default=None, choices=CONTENDERS, help="sampler to compare with seed by seed"
    )
    parser.add_argument("--plots", type=Path, default=None, help="folder for PNG files")
    arguments = parser.parse_args()
    if arguments.against not in (None, *arguments.samplers):
        parser.error(f"--against {arguments.against}: expected one of --samplers")
    _run_all(arguments)


def _run_all(arguments: argparse.Namespace) -> None:
    seeds = arguments.seeds or (2 if arguments.quick else 20)
    n_trials = arguments.n_trials or (50 if arguments.quick else 100)

    data = Path(__file__).parent / "data"
    tables = arguments.table if arguments.table is not None else sorted(data.glob("table_*.npz"))
    if not tables:
        print(f"(b) skipped: no measured table in {data}; benchmarks/make_tables.py makes one")
    tasks = [
        Task(problem, noise, sampler, seed, n_trials, None, arguments.workers)
        for problem in arguments.problems
        for noise in arguments.noise
        for seed in range(seeds)
        for sampler in arguments.samplers
    ]
    tasks += [
        Task(path.stem, None, sampler, seed, n_trials, path, arguments.workers)
        for path in tables
        for sampler in arguments.samplers
        for seed in range(seeds)
    ]
    with ProcessPoolExecutor(arguments.processes) as pool:
        outcomes = list(pool.map(run, tasks))
    checkpoints = [k for k in (30, 50, 100, 200) if k <= n_trials]
    print("\n".join(summarise(outcomes, checkpoints)))
    if arguments.against is not None:
        print("\n" + "\n".join(compare(outcomes, arguments.against)))
    if arguments.patience:
        gaps = {}
        for outcome in outcomes:
            name, noise = outcome.task.problem.removeprefix("table_"), outcome.task.noise
            gaps.setdefault((name, noise), []).append((outcome.gaps, outcome.gains))
        print("\n".join(summarise_stops(gaps, arguments.patience)))
    if arguments.plots is not None:
        arguments.plots.mkdir(parents=True, exist_ok=True)
        plot(outcomes, arguments.plots)


if __name__ == "__main__":
    main()
