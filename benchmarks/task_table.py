"""Which tasks go the whole way: a search, its promise, a packed file, other graphs, workers.

    python benchmarks/task_table.py           # all tasks, as the table in docs/coverage.md
    python benchmarks/task_table.py --quick   # two of them

The models and graphs are those of ``tests/search/test_tasks.py`` and ``test_typed_search.py``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import nn

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))
# Of the worker processes.
os.environ |= {"PYTHONPATH": str(_ROOT), "PYTHONWARNINGS": "ignore"}

import sgquant_optuna as sgq  # noqa: E402
from sgquant_optuna.graph.training_config import TrainingConfig  # noqa: E402
from sgquant_optuna.study.rows import trial_rows  # noqa: E402
from tests.search.test_tasks import CASES  # noqa: E402
from tests.search.test_typed_search import PAPERS  # noqa: E402
from tests.typed_graphs import library, transformed  # noqa: E402

_COLUMNS = ("search", "promise", "export", "packed on a new graph", "workers")
_QUICK = ("regression", "graph classes")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two tasks")
    quick = parser.parse_args().quick
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    print(f"| task | {' | '.join(_COLUMNS)} |\n|---|{'---|' * len(_COLUMNS)}")
    for name, (task, make_data, make_model, outputs) in CASES.items():
        if not quick or name in _QUICK:
            data = make_data()
            model = make_model(data.num_features, outputs)
            print_row(f"{name} ({task.name}, {task.metric.name})", task, data, model)
    if not quick:
        data = library()
        print_row("node types (`to_hetero`)", PAPERS, data, transformed(data))


def print_row(name: str, task: Any, data: Any, model: nn.Module) -> None:
    """Try a task, and print what came of each step."""
    with tempfile.TemporaryDirectory() as folder:
        cells = attempts(task, data, model, Path(folder))
        row = [said(cells[column]) for column in _COLUMNS]
    print(f"| {name} | {' | '.join(row)} |", flush=True)


def said(attempt: Callable[[], None]) -> str:
    """Return ``yes``, or why not in the words of the error."""
    try:
        attempt()
    except Exception as error:
        return f"no: {str(error).splitlines()[0][:100]}"
    return "yes"


def attempts(task: Any, data: Any, model: nn.Module, folder: Path) -> dict[str, Any]:
    """Return the steps, to be taken in order."""
    torch.manual_seed(0)
    sgq.fit(model, data, TrainingConfig(epochs=30), task=task)
    objective = sgq.QuantizationObjective(
        model,
        data,
        task=task,
        max_drop=20.0,
        candidates=(2, 4, 8),
        finetuning=TrainingConfig(epochs=5),
    )
    storage = folder / "s.db"
    study = sgq.create_study(objective, storage=storage, study_name="s", seed=0)

    def search() -> None:
        study.optimize(objective, n_trials=3)
        sgq.report(study)

    def promise() -> None:
        for row in trial_rows(study, sgq.TrialResult):
            if row.result is None or row.result.evidence is None:
                raise RuntimeError("no change of outputs was measured")

    def export() -> None:
        done = sgq.export_study(study, folder / "m.sgq", objective=objective)
        if done.model.score_difference > 1e-5:
            raise RuntimeError(f"scores differ by {done.model.score_difference}")

    def new_graph() -> None:
        sgq.export_study(study, folder / "a.sgq", objective=objective, with_features=False)
        other = data.clone()
        other.x = data.x + 0.1
        found = sgq.load_packed(folder / "a.sgq", model=model)(other)
        if not bool(found.isfinite().all()):
            raise RuntimeError("outputs are not finite")

    def workers() -> None:
        sgq.run_trials(study, objective, n_trials=6, n_jobs=2)
        states = [trial.state.name for trial in study.get_trials(deepcopy=False)]
        if states != ["COMPLETE"] * 6:
            raise RuntimeError(f"trials ended as {states}")

    return dict(zip(_COLUMNS, (search, promise, export, new_graph, workers), strict=True))


if __name__ == "__main__":
    main()
