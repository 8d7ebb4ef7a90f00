"""Everything of a search before its first trial, done once for all workers of the study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from torch import nn

from sgquant_optuna.exceptions import StudyMismatchError
from sgquant_optuna.graph.node_types import Graph
from sgquant_optuna.search.objective import QuantizationObjective
from sgquant_optuna.search.study_creation import create_study, default_sampler
from sgquant_optuna.search.study_file import (
    StudyFile,
    load_study_file,
    named_study_file,
    objective_of,
)
from sgquant_optuna.search.trained_models import (
    load_plan_graph,
    share_models,
    shared_models,
    train_models,
    with_a_model_each,
)
from sgquant_optuna.storage.attributes import PLAN_ATTR, RECORD_ATTR
from sgquant_optuna.storage.lease import exclusive
from sgquant_optuna.study.deletion import telling_deletion
from sgquant_optuna.study.plan import SearchPlan

if TYPE_CHECKING:
    from sgquant_optuna.storage.artifacts import ArtifactStore


@dataclass(frozen=True)
class PreparedSearch:
    """A study that is ready for trials.

    Args:
        plan:
            Settings of the search.
        study:
            Study with its sampler.
        objective:
            Objective that measures its trials.
        data:
            Graph, test nodes included.
        own:
            File that made graph and models, if they are the user's own.
    """

    plan: SearchPlan
    study: optuna.Study
    objective: QuantizationObjective
    data: Graph
    own: StudyFile | None = None


def prepare_search(
    plan: SearchPlan,
    storage: BaseStorage,
    artifacts: ArtifactStore,
    *,
    study_name: str | None = None,
    root: str | Path | None = None,
    device: str = "cpu",
) -> PreparedSearch:
    """Make the study of a plan, train its full-precision models and share them; or resume it.

    Of several workers that start at once, one trains, and the others wait for what it shares. If
    it is killed, the next one takes over.

    Args:
        plan:
            All settings. A file of own models that it names is imported.
        storage:
            Study database.
        artifacts:
            Store of the trained models.
        study_name:
            Name of the study; the plan's by default.
        root:
            Folder of data sets.
        device:
            Device of all tensors: ``"cpu"``, ``"cuda"``, ...

    Raises:
        ArtifactError:
            If the trained models cannot be stored, or were altered.
        GraphError:
            If the graph cannot be loaded.
        StudyFileError:
            If own models cannot be made.
        StudyDeletedError:
            If the study was deleted meanwhile.
        StudyMismatchError:
            If the study is of another graph, model, training, space or protocol.
    """
    # A mistake shows before a study is made.
    own = None if plan.own is None else load_study_file(plan.own.text)
    plan = plan if own is None else own.completed(plan)
    data = load_plan_graph(plan, root, device=device, own=own)
    plan = with_a_model_each(plan, data, own)
    study = optuna.create_study(
        storage=storage,
        study_name=study_name or plan.study_name,
        directions=[StudyDirection.MINIMIZE] * len(plan.metric_names()),
        load_if_exists=True,
    )
    with telling_deletion(study):
        prepared = _prepare(plan, study, storage, artifacts, data, own)
        plan.save(study)  # a resumed search may ask for more trials
    return prepared


def join_search(
    study: optuna.Study,
    storage: BaseStorage,
    artifacts: ArtifactStore,
    *,
    root: str | Path | None = None,
    device: str = "cpu",
    study_file: str | None = None,
) -> PreparedSearch:
    """Rebuild graph, models and objective of a study from its plan, on any machine.

    The models are those that were trained once. Where this machine cannot reach them, it trains
    them again from the same seeds, and the study's fingerprint tells whether they are the same.

    Args:
        study:
            Study that was prepared here or elsewhere.
        storage:
            Database of the study.
        artifacts:
            Store of the trained models.
        root:
            Folder of data sets.
        device:
            Device of all tensors: ``"cpu"``, ``"cuda"``, ...
        study_file:
            File of own models that the user of this process names; what the study says is never
            imported.

    Raises:
        StudyFileError:
            If own models cannot be made.
        StudyDeletedError:
            If the study was deleted meanwhile.
        StudyMismatchError:
            If the study has no plan, or this graph, these models or this file differ from it.
        ArtifactError:
            If the trained models were altered.
        GraphError:
            If the graph cannot be loaded.
    """
    with telling_deletion(study):
        plan = SearchPlan.load(study)
        own = named_study_file(plan, study.study_name, study_file)
        data = load_plan_graph(plan, root, device=device, own=own)
        return _prepare(plan, study, storage, artifacts, data, own)


def _prepare(
    plan: SearchPlan,
    study: optuna.Study,
    storage: BaseStorage,
    artifacts: ArtifactStore,
    data: Graph,
    own: StudyFile | None,
) -> PreparedSearch:
    def is_prepared() -> bool:
        return RECORD_ATTR in study.user_attrs

    def signed(models: list[nn.Module]) -> PreparedSearch:
        objective = objective_of(models, data, plan, own)
        sampler = default_sampler(
            objective, seed=plan.seed, acquisition=plan.acquisition, cost_model=plan.cost_model
        )
        made = create_study(
            objective, storage=storage, study_name=study.study_name, sampler=sampler
        )
        return PreparedSearch(plan, made, objective, data, own)

    with exclusive(study, "preparation", unless=is_prepared) as mine:
        if mine:
            models = None
            if PLAN_ATTR in study.user_attrs:  # a worker was killed after it had trained, perhaps
                if not plan.trains_otherwise(SearchPlan.load(study)):
                    models = shared_models(plan, data, study, artifacts, own)
            # Now, so that any worker can take over if this one is killed.
            plan.save(study)
            if models is None:
                models = train_models(plan, data, own)
                share_models(models, study, artifacts)
            return signed(models)
    if PLAN_ATTR in study.user_attrs:
        difference = plan.trains_otherwise(SearchPlan.load(study))
        if difference:
            raise StudyMismatchError(
                f"study {study.study_name!r} was made with other trained models ({difference}). "
                f"Repeat its settings to resume it, or choose another study name"
            )
    models = shared_models(plan, data, study, artifacts, own)
    return signed(train_models(plan, data, own) if models is None else models)
