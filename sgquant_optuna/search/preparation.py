"""Everything of a search before its first trial, done once for all workers of the study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from torch import nn
from torch_geometric.data import Data

from sgquant_optuna.exceptions import StudyMismatchError
from sgquant_optuna.search.objective import QuantizationObjective
from sgquant_optuna.search.study_creation import create_study, load_study
from sgquant_optuna.search.trained_models import (
    load_plan_graph,
    share_models,
    shared_models,
    train_models,
)
from sgquant_optuna.storage import open_storage
from sgquant_optuna.storage.artifacts import open_artifacts
from sgquant_optuna.storage.lease import exclusive
from sgquant_optuna.study.plan import PLAN_ATTR, SearchPlan
from sgquant_optuna.study.record import RECORD_ATTR


@dataclass(frozen=True)
class PreparedSearch:
    """A study that is ready for trials.

    Args:
        plan:
            Its settings.
        study:
            With its sampler.
        objective:
            Measures its trials.
        data:
            Its graph, test nodes included.
    """

    plan: SearchPlan
    study: optuna.Study
    objective: QuantizationObjective
    data: Data


def prepare_search(
    plan: SearchPlan,
    *,
    storage: str | Path | None = None,
    study_name: str | None = None,
    artifacts: str | Path | None = None,
    root: str | Path | None = None,
    device: str = "cpu",
) -> PreparedSearch:
    """Make the study of a plan, train its full-precision models and share them; or resume it.

    Of several workers that start at once, one trains, and the others wait for what it shares. If
    it is killed, the next one takes over.

    Args:
        plan:
            All settings.
        storage:
            Study database, as :func:`sgquant_optuna.open_storage` takes it.
        study_name:
            Name of the study; the plan's by default.
        artifacts:
            Where the trained models are stored, as ``open_artifacts`` takes it.
        root:
            Folder of data sets.
        device:
            Where tensors live: ``"cpu"``, ``"cuda"``, ...

    Raises:
        StorageError:
            If the storage cannot be opened.
        ArtifactError:
            If the trained models cannot be stored, or were altered.
        GraphError:
            If the graph cannot be loaded.
        StudyMismatchError:
            If the study is of another graph, model, training, space or protocol.
    """
    data = load_plan_graph(plan, root, device=device)  # a mistake shows before a study is made
    study = optuna.create_study(
        storage=open_storage(storage),
        study_name=study_name or plan.study_name,
        directions=[StudyDirection.MINIMIZE] * len(plan.metric_names),
        load_if_exists=True,
    )
    prepared = _prepare(plan, study, data, storage, artifacts)
    plan.save(study)  # a resumed search may ask for more trials
    return prepared


def join_search(
    study_name: str | None = None,
    *,
    storage: str | Path | None = None,
    artifacts: str | Path | None = None,
    root: str | Path | None = None,
    device: str = "cpu",
    wait: float = 0.0,
) -> PreparedSearch:
    """Rebuild graph, models and objective of a study from its plan, on any machine.

    The models are those that were trained once. Where this machine cannot reach them, it trains
    them again from the same seeds, and the study's fingerprint tells whether they are the same.

    Args:
        study_name:
            Which; may be left out if the storage holds a single one.
        storage:
            Study database, as :func:`sgquant_optuna.open_storage` takes it.
        artifacts:
            Where the trained models are stored, as ``open_artifacts`` takes it.
        root:
            Folder of data sets.
        device:
            Where tensors live: ``"cpu"``, ``"cuda"``, ...
        wait:
            Seconds to wait for a database server that does not answer yet.

    Raises:
        StorageError:
            If the storage cannot be opened.
        StudyNotFoundError:
            If there is no such study, or several and no name.
        StudyMismatchError:
            If the study has no plan, or this graph or these models differ from it.
        ArtifactError:
            If the trained models were altered.
        GraphError:
            If the graph cannot be loaded.
    """
    study = load_study(study_name, storage=storage, wait=wait)
    plan = SearchPlan.load(study)
    data = load_plan_graph(plan, root, device=device)
    return _prepare(plan, study, data, storage, artifacts)


def _prepare(
    plan: SearchPlan,
    study: optuna.Study,
    data: Data,
    storage: str | Path | None,
    artifacts: str | Path | None,
) -> PreparedSearch:
    opened: BaseStorage = study._storage
    store = open_artifacts(artifacts, storage_url=storage)

    def is_prepared() -> bool:
        return RECORD_ATTR in study.user_attrs

    def signed(models: list[nn.Module]) -> PreparedSearch:
        objective = QuantizationObjective(models, data, plan)
        made = create_study(objective, storage=opened, study_name=study.study_name, seed=plan.seed)
        return PreparedSearch(plan, made, objective, data)

    with exclusive(study, "preparation", unless=is_prepared) as mine:
        if mine:
            models = None
            if PLAN_ATTR in study.user_attrs:  # a worker was killed after it had trained, perhaps
                if not plan.trains_otherwise(SearchPlan.load(study)):
                    models = shared_models(plan, data, study, store)
            # Now, so that any worker can take over if this one is killed.
            plan.save(study)
            if models is None:
                models = train_models(plan, data)
                share_models(models, study, store)
            return signed(models)
    if PLAN_ATTR in study.user_attrs:
        difference = plan.trains_otherwise(SearchPlan.load(study))
        if difference:
            raise StudyMismatchError(
                f"study {study.study_name!r} was made with other trained models ({difference}). "
                f"Repeat its settings to resume it, or choose another study name"
            )
    models = shared_models(plan, data, study, store)
    return signed(train_models(plan, data) if models is None else models)
