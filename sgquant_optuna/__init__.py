"""Finds how few bits each part of a PyTorch Geometric model needs, as an Optuna study."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sgquant_optuna.graph.openmp import let_threads_sleep as _let_threads_sleep

if TYPE_CHECKING:
    from sgquant_optuna.attachment.attention import quantize_attention, register_attention
    from sgquant_optuna.attachment.calibration import calibrate
    from sgquant_optuna.attachment.layer_inputs import default_layers
    from sgquant_optuna.attachment.quantized_model import attach, bind, detach, set_bit_widths
    from sgquant_optuna.exceptions import SgquantError
    from sgquant_optuna.graph import tasks
    from sgquant_optuna.graph.datasets import load_graph
    from sgquant_optuna.graph.degree_buckets import AddDegreeBuckets
    from sgquant_optuna.graph.forward_pass import columns
    from sgquant_optuna.graph.paper_models import AGNN, GAT, GCN, MODELS, make_model
    from sgquant_optuna.graph.splits import choose_split
    from sgquant_optuna.graph.tasks.task import Task
    from sgquant_optuna.graph.training import accuracy, fit
    from sgquant_optuna.graph.training_config import TrainingConfig, paper_training
    from sgquant_optuna.packed.export import export_packed, load_packed
    from sgquant_optuna.packed.feature_packing import pack_features
    from sgquant_optuna.packed.feature_store import PackedFeatureStore
    from sgquant_optuna.packed.mapped_features import load_features
    from sgquant_optuna.packed.packed_tensor import PackedTensor
    from sgquant_optuna.quantization.memory import (
        FeatureLayout,
        Memory,
        honest_memory,
        paper_memory,
    )
    from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
    from sgquant_optuna.quantization.sites import BitWidths, Site
    from sgquant_optuna.sampler import SGQuantSampler, StopWhenSettled, best_for
    from sgquant_optuna.search.final_report import final_report
    from sgquant_optuna.search.objective import QuantizationObjective
    from sgquant_optuna.search.progress import SearchProgress
    from sgquant_optuna.search.study_creation import create_study, default_sampler
    from sgquant_optuna.search.study_file import OwnStudy
    from sgquant_optuna.search.trial_export import export_assignment, export_study
    from sgquant_optuna.search.workers.script_processes import run_trials
    from sgquant_optuna.storage import open_storage
    from sgquant_optuna.study.answers import StudyAnswer, answer
    from sgquant_optuna.study.assignment import Assignment, load_assignment
    from sgquant_optuna.study.loading import load_study
    from sgquant_optuna.study.plan import ObjectiveConfig, SearchPlan
    from sgquant_optuna.study.report import StudyReport, report
    from sgquant_optuna.study.search_space import BitWidthSearchSpace
    from sgquant_optuna.study.trial_result import TrialResult

__version__ = "0.1.0"

_let_threads_sleep()

# Resolved at first use (PEP 562), so that the sampler and the storage work without torch.
_MODULES = {
    "attachment.attention": ("quantize_attention", "register_attention"),
    "attachment.calibration": ("calibrate",),
    "attachment.layer_inputs": ("default_layers",),
    "attachment.quantized_model": ("attach", "bind", "detach", "set_bit_widths"),
    "exceptions": ("SgquantError",),
    "graph.datasets": ("load_graph",),
    "graph.degree_buckets": ("AddDegreeBuckets",),
    "graph.splits": ("choose_split",),
    "graph.forward_pass": ("columns",),
    "graph.paper_models": ("AGNN", "GAT", "GCN", "MODELS", "make_model"),
    "graph.tasks.task": ("Task",),
    "graph.tasks": ("tasks",),
    "graph.training": ("accuracy", "fit"),
    "graph.training_config": ("TrainingConfig", "paper_training"),
    "packed.export": ("export_packed", "load_packed"),
    "packed.feature_packing": ("pack_features",),
    "packed.feature_store": ("PackedFeatureStore",),
    "packed.mapped_features": ("load_features",),
    "packed.packed_tensor": ("PackedTensor",),
    "quantization.memory": ("FeatureLayout", "Memory", "honest_memory", "paper_memory"),
    "quantization.quantizer_config": ("QuantizerConfig",),
    "quantization.sites": ("BitWidths", "Site"),
    "sampler": ("SGQuantSampler", "StopWhenSettled", "best_for"),
    "search.final_report": ("final_report",),
    "search.objective": ("QuantizationObjective",),
    "search.progress": ("SearchProgress",),
    "search.study_creation": ("create_study", "default_sampler"),
    "search.study_file": ("OwnStudy",),
    "search.trial_export": ("export_assignment", "export_study"),
    "search.workers.script_processes": ("run_trials",),
    "storage": ("open_storage",),
    "study.answers": ("StudyAnswer", "answer"),
    "study.assignment": ("Assignment", "load_assignment"),
    "study.loading": ("load_study",),
    "study.plan": ("ObjectiveConfig", "SearchPlan"),
    "study.report": ("StudyReport", "report"),
    "study.search_space": ("BitWidthSearchSpace",),
    "study.trial_result": ("TrialResult",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [  # noqa: F822 - resolved by __getattr__
    "AGNN",
    "AddDegreeBuckets",
    "Assignment",
    "BitWidthSearchSpace",
    "BitWidths",
    "FeatureLayout",
    "GAT",
    "GCN",
    "MODELS",
    "Memory",
    "ObjectiveConfig",
    "OwnStudy",
    "PackedFeatureStore",
    "PackedTensor",
    "QuantizationObjective",
    "QuantizerConfig",
    "SGQuantSampler",
    "SearchPlan",
    "SearchProgress",
    "SgquantError",
    "Site",
    "StopWhenSettled",
    "StudyAnswer",
    "StudyReport",
    "Task",
    "TrainingConfig",
    "TrialResult",
    "accuracy",
    "answer",
    "attach",
    "best_for",
    "bind",
    "calibrate",
    "choose_split",
    "columns",
    "create_study",
    "default_layers",
    "default_sampler",
    "detach",
    "export_assignment",
    "export_packed",
    "export_study",
    "final_report",
    "fit",
    "honest_memory",
    "load_assignment",
    "load_features",
    "load_graph",
    "load_packed",
    "load_study",
    "make_model",
    "open_storage",
    "pack_features",
    "paper_memory",
    "paper_training",
    "quantize_attention",
    "register_attention",
    "report",
    "run_trials",
    "set_bit_widths",
    "tasks",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
    value = getattr(module, name, module)  # tasks is a module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
