"""A search on the digits that is prepared in two seconds; its trials take some milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from torch import nn

from sgquant_optuna.graph.node_types import Graph
from sgquant_optuna.graph.tasks.task import Task
from sgquant_optuna.graph.training_config import FINETUNING, TrainingConfig
from sgquant_optuna.search.objective import QuantizationObjective
from sgquant_optuna.search.preparation import PreparedSearch, join_search, prepare_search
from sgquant_optuna.search.study_creation import create_study
from sgquant_optuna.storage import open_storage
from sgquant_optuna.storage.artifacts import ArtifactStore, open_artifacts
from sgquant_optuna.study.loading import load_study
from sgquant_optuna.study.plan import SearchPlan


def prepare(folder: Path, plan: SearchPlan) -> PreparedSearch:
    """Make or resume the study of a plan in ``s.db`` of a folder."""
    return prepare_search(plan, open_storage(folder / "s.db"), artifacts_of(folder))


def join(folder: Path, url: str | None = None) -> PreparedSearch:
    """Join the only study of ``s.db`` in a folder, or of a URL with the folder's artifacts."""
    storage = open_storage(url or folder / "s.db")
    return join_search(load_study(storage=storage), storage, artifacts_of(folder))


def artifacts_of(folder: Path) -> ArtifactStore:
    return open_artifacts(storage_url=folder / "s.db")


def searched(
    models: nn.Module | list[nn.Module], data: Graph, task: Task, folder: Path, *, n_trials: int
) -> tuple[optuna.Study, QuantizationObjective]:
    """Search own models with a wide limit; return the study in ``s.db`` and its objective."""
    objective = QuantizationObjective(
        models,
        data,
        task=task,
        max_drop=20.0,
        granularity="lwq+taq",
        degree_edges=2,
        candidates=(2, 4, 8),
        finetuning=TrainingConfig(epochs=5),
    )
    study = create_study(objective, storage=folder / "s.db", study_name="s", seed=0)
    study.optimize(objective, n_trials=n_trials)
    return study, objective


def a_plan(**changes: Any) -> SearchPlan:
    settings: dict[str, Any] = {
        "model": "gcn",
        "dataset": "digits",
        "n_trials": 4,
        "max_drop": 5.0,
        "mode": "constrained",
        "granularity": "lwq",
        "candidates": (1, 2, 4, 8),
        "exact_inputs": False,  # of the digits, that would leave one layer and four choices
        "degree_edges": 4,
        "models": 2,
        "training": TrainingConfig(epochs=2),
        "finetuning": FINETUNING.with_epochs(1),
    }
    return SearchPlan(**{**settings, **changes})
