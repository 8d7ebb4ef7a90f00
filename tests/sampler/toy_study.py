"""A study of six bit widths whose drop and memory are known, and helpers to run it."""

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution

from sgquant_optuna.sampler import SGQuantSampler
from sgquant_optuna.sampler.claims import Claim
from sgquant_optuna.sampler.gaussian_process import Prediction
from sgquant_optuna.sampler.space import FiniteSpace

WIDTHS = (1, 2, 4, 8, 16)
SPACE = {f"site{i}": CategoricalDistribution(WIDTHS) for i in range(6)}
SCALES = (9.0, 5.0, 3.0, 7.0, 2.0, 4.0)


def memory_of(params):
    return float(sum(params.values()))


def drop_of(params):
    return sum(a * 2.0 ** -params[name] for a, name in zip(SCALES, SPACE, strict=True))


def set_constraint(trial, value):
    """Set the constraint in one write; ``Trial.set_constraint`` warns in a retried trial."""
    trial.storage.set_trial_system_attr(trial._trial_id, "constraints", [value])


def objective(trial):
    params = {name: trial.suggest_categorical(name, WIDTHS) for name in SPACE}
    violation = drop_of(params) - 1.0
    set_constraint(trial, violation)
    return memory_of(params) if violation <= 0 else 100 * (1 + violation)


def new_sampler(seed=0, space=SPACE, **options):
    return SGQuantSampler(
        space, known_objective=memory_of, seed=seed, **{"n_sample": 500, **options}
    )


def run(n_trials, acquisition="default", **options):
    study = optuna.create_study(sampler=new_sampler(acquisition=acquisition, **options))
    study.optimize(objective, n_trials=n_trials)
    return study


def configuration(trial):
    return tuple(trial.params[name] for name in SPACE)


def configurations(study):
    return [configuration(t) for t in study.trials]


def claims(study):
    return [Claim.of(t.system_attrs) for t in study.trials]


def grid(parameters):
    return FiniteSpace({f"p{i:02d}": CategoricalDistribution(WIDTHS) for i in range(parameters)})


def prediction_of(mean, deviation):
    return Prediction(np.array(mean, dtype=float), np.array(deviation, dtype=float))
