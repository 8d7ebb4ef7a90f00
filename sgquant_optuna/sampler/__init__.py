"""An Optuna sampler for finite, constrained and noisy spaces, usable without torch."""

from sgquant_optuna.sampler.best_for import Answer, best_for
from sgquant_optuna.sampler.cost_model import CostModel, FittedCostModel
from sgquant_optuna.sampler.explain import Calibration, Sensitivity, calibration, sensitivity
from sgquant_optuna.sampler.sampler import SGQuantSampler
from sgquant_optuna.sampler.settled import StopWhenSettled

__all__ = [
    "Answer",
    "Calibration",
    "CostModel",
    "FittedCostModel",
    "SGQuantSampler",
    "Sensitivity",
    "StopWhenSettled",
    "best_for",
    "calibration",
    "sensitivity",
]
