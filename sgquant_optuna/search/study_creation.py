"""Makes or resumes the Optuna study of an objective."""

from __future__ import annotations

import warnings
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from sgquant_optuna.sampler import SGQuantSampler
from sgquant_optuna.sampler.cost_model import DEFAULT_COST_MODEL, CostModel, CostModelName
from sgquant_optuna.search.objective import QuantizationObjective
from sgquant_optuna.storage import open_storage
from sgquant_optuna.study.deletion import WorkersStudy
from sgquant_optuna.study.limit import NEAR_BUDGET


def create_study(
    objective: QuantizationObjective,
    *,
    storage: str | Path | BaseStorage | None = None,
    study_name: str | None = None,
    sampler: BaseSampler | None = None,
    pruner: BasePruner | None = None,
    seed: int | None = None,
) -> optuna.Study:
    """Make the study of an objective, or resume it if the storage holds it already.

    A study made by ``optuna.create_study`` serves as well; this function sets directions, names
    of the values and the sampler, and lets ``optimize`` end with one ``StudyDeletedError`` if the
    study is deleted meanwhile. :class:`SearchProgress` draws the bar of ``sgquant search``.

    Args:
        objective:
            Objective that will measure the trials.
        storage:
            URL, file of SQLite, or Optuna storage; the local default if ``None``.
        study_name:
            Name under which it is resumed; a new one by default.
        sampler:
            Any Optuna sampler; :class:`SGQuantSampler` by default.
        pruner:
            Any Optuna pruner; none by default, as trials stop by themselves when they are decided.
        seed:
            Seed of the default sampler.

    Raises:
        StorageError:
            If the storage cannot be opened.
        StudyMismatchError:
            If the study was measured on another graph, model, space or protocol.
    """
    made = optuna.create_study(
        storage=storage if isinstance(storage, BaseStorage) else open_storage(storage),
        study_name=study_name,
        sampler=sampler or default_sampler(objective, seed=seed),
        pruner=pruner or NopPruner(),
        directions=objective.directions,
        load_if_exists=True,
    )
    study = WorkersStudy.of(made)
    objective.sign(study)
    if study.metric_names != objective.metric_names:
        with warnings.catch_warnings():  # the names are Optuna's own since 3.2
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(objective.metric_names)
    return study


def default_sampler(
    objective: QuantizationObjective,
    *,
    seed: int | None = None,
    acquisition: str = "default",
    cost_model: CostModelName | CostModel = DEFAULT_COST_MODEL,
) -> SGQuantSampler:
    """Return the sampler that knows the objective's space and its memory formula.

    The other arguments are those of :class:`SGQuantSampler`.
    """
    if objective.config.mode == "budget":
        return SGQuantSampler(
            objective.search_space.distributions,
            known_constraint=objective.budget_excess,
            known_constraint_slack=NEAR_BUDGET,
            known_constraint_name="0",
            acquisition=acquisition,
            cost_model=cost_model,
            seed=seed,
        )
    return SGQuantSampler(
        objective.search_space.distributions,
        known_objective=objective.memory_bytes,
        joint_constraints=objective.violations if objective.config.mode == "constrained" else None,
        acquisition=acquisition,
        cost_model=cost_model,
        seed=seed,
    )
