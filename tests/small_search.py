"""A search on the digits that is prepared in two seconds; its trials take some milliseconds."""

from __future__ import annotations

from typing import Any

from sgquant_optuna.graph.training_config import FINETUNING, TrainingConfig
from sgquant_optuna.study.plan import SearchPlan


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
