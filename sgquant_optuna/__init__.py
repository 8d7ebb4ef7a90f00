"""Finds how few bits each part of a PyTorch Geometric model needs, as an Optuna study."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgquant_optuna.assignment import Assignment, load_assignment
    from sgquant_optuna.attachment.attention import quantize_attention, register_attention
    from sgquant_optuna.attachment.model import attach, bind, calibrate, detach, set_bit_widths
    from sgquant_optuna.bit_widths import BitWidths, Site
    from sgquant_optuna.degree_buckets import AddDegreeBuckets
    from sgquant_optuna.exceptions import SgquantError
    from sgquant_optuna.final_measurement import final_report
    from sgquant_optuna.graphs import load_graph
    from sgquant_optuna.memory import FeatureLayout, Memory, honest_memory, paper_memory
    from sgquant_optuna.models import AGNN, GAT, GCN, make_model
    from sgquant_optuna.objective import QuantizationObjective
    from sgquant_optuna.packed.export import export_packed, load_packed
    from sgquant_optuna.quantization.config import QuantizerConfig
    from sgquant_optuna.sampler import SGQuantSampler
    from sgquant_optuna.search_plan import SearchPlan
    from sgquant_optuna.search_space import BitWidthSearchSpace
    from sgquant_optuna.storage import open_storage
    from sgquant_optuna.study import create_study, default_sampler
    from sgquant_optuna.study_export import export_assignment, export_study
    from sgquant_optuna.study_loading import load_study
    from sgquant_optuna.study_report import report
    from sgquant_optuna.training import TrainingConfig, accuracy, fit

__version__ = "0.1.0"

# Resolved at first use (PEP 562), so that the sampler and the storage work without torch.
_MODULES = {
    "assignment": ("Assignment", "load_assignment"),
    "attachment.attention": ("quantize_attention", "register_attention"),
    "attachment.model": ("attach", "bind", "calibrate", "detach", "set_bit_widths"),
    "bit_widths": ("BitWidths", "Site"),
    "degree_buckets": ("AddDegreeBuckets",),
    "exceptions": ("SgquantError",),
    "final_measurement": ("final_report",),
    "graphs": ("load_graph",),
    "memory": ("FeatureLayout", "Memory", "honest_memory", "paper_memory"),
    "models": ("AGNN", "GAT", "GCN", "make_model"),
    "objective": ("QuantizationObjective",),
    "packed.export": ("export_packed", "load_packed"),
    "quantization.config": ("QuantizerConfig",),
    "study_export": ("export_assignment", "export_study"),
    "study_report": ("report",),
    "sampler": ("SGQuantSampler",),
    "search_plan": ("SearchPlan",),
    "search_space": ("BitWidthSearchSpace",),
    "storage": ("open_storage",),
    "study": ("create_study", "default_sampler"),
    "study_loading": ("load_study",),
    "training": ("TrainingConfig", "accuracy", "fit"),
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
    "Memory",
    "QuantizationObjective",
    "QuantizerConfig",
    "SGQuantSampler",
    "SearchPlan",
    "SgquantError",
    "Site",
    "TrainingConfig",
    "accuracy",
    "attach",
    "bind",
    "calibrate",
    "create_study",
    "default_sampler",
    "detach",
    "export_assignment",
    "export_packed",
    "export_study",
    "final_report",
    "fit",
    "honest_memory",
    "load_assignment",
    "load_graph",
    "load_packed",
    "load_study",
    "make_model",
    "open_storage",
    "paper_memory",
    "quantize_attention",
    "register_attention",
    "report",
    "set_bit_widths",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
