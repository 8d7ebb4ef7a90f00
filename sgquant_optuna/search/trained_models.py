"""Graph and full-precision models of a plan: trained once, and shared as one file of the study."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import safetensors.torch
from optuna.artifacts import upload_artifact
from safetensors import SafetensorError
from torch import Tensor, nn

from sgquant_optuna.exceptions import ArtifactError, StudyFileError
from sgquant_optuna.graph.datasets import load_graph
from sgquant_optuna.graph.model_copies import copy_state, named_state, restore_state
from sgquant_optuna.graph.node_types import Graph
from sgquant_optuna.graph.paper_models import make_model
from sgquant_optuna.graph.splits import choose_split, split_graphs
from sgquant_optuna.graph.training import fit
from sgquant_optuna.search.study_file import StudyFile
from sgquant_optuna.storage.attributes import WEIGHTS_ATTR
from sgquant_optuna.study.plan import SearchPlan
from sgquant_optuna.study.stored_values import reading, stored_mapping

if TYPE_CHECKING:
    from sgquant_optuna.storage.artifacts import ArtifactStore

FILE_NAME = "full_precision.safetensors"

_logger = logging.getLogger(__name__)


def load_plan_graph(
    plan: SearchPlan,
    root: str | Path | None = None,
    *,
    device: str = "cpu",
    own: StudyFile | None = None,
) -> Graph:
    """Load the graph of a plan as it trains on it; ``root`` is the folder of data sets."""
    if own is not None:
        return _with_split(own.own.data, plan).to(device)
    assert plan.dataset is not None
    data = load_graph(
        plan.dataset, root, seed=plan.seed, normalize_features=plan.normalize_features
    )
    return _with_split(data, plan).to(device)


def _with_split(data: Graph, plan: SearchPlan) -> Graph:
    """Choose the split of a plan; where all are meant, each model chooses its own."""
    if plan.split is None or plan.split == "all":
        return data
    return choose_split(data, plan.split)


def with_a_model_each(plan: SearchPlan, data: Graph, own: StudyFile | None = None) -> SearchPlan:
    """Return the plan with a model for each split, if all of them are meant.

    Raises:
        GraphError:
            If the graph has no splits.
        StudyFileError:
            If trained models are given, and not one for each.
    """
    if plan.split != "all":
        return plan
    count = len(split_graphs(data, "all"))
    if own is not None and own.own.trained and len(own.own.trained) != count:
        raise StudyFileError(
            f"{own.reference.text}: expected a trained model for each of the {count} splits, got "
            f"{len(own.own.trained)}"
        )
    return replace(plan, models=count)


def train_model(
    plan: SearchPlan,
    data: Graph,
    seed: int,
    own: StudyFile | None = None,
    split: int | None = None,
) -> nn.Module:
    """Train a full-precision model of a plan from a seed, on a split if there are several."""
    data = data if split is None else choose_split(data, split)
    model = _untrained(plan, data, seed, own)
    if own is None:
        fit(model, data, plan.training, seed=seed)
    else:
        own.train(model, data, plan, seed)
    return model


def train_models(plan: SearchPlan, data: Graph, own: StudyFile | None = None) -> list[nn.Module]:
    """Train the models that each trial of a plan is measured on."""
    if plan.split != "all":
        return [train_model(plan, data, seed, own) for seed in plan.training_seeds]
    seeds = enumerate(plan.training_seeds)
    return [train_model(plan, data, seed, own, split) for split, seed in seeds]


def share_models(models: Sequence[nn.Module], study: optuna.Study, store: ArtifactStore) -> None:
    """Store the weights of all models as one artifact of the study.

    Args:
        models:
            Trained models of one architecture.
        study:
            Study whose user attribute ``sgquant:weights`` will name the artifact and its checksum.
        store:
            Artifact store of the study.

    Raises:
        ArtifactError:
            If it cannot be written.
    """
    tensors = {
        f"{index}.{name}": value.cpu().contiguous()  # copies: tied weights share their memory
        for index, model in enumerate(models)
        for name, value in copy_state(model).items()
    }
    content = safetensors.torch.save(tensors)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE_NAME
        path.write_bytes(content)
        try:
            artifact = upload_artifact(
                artifact_store=store, file_path=str(path), study_or_trial=study
            )
        except ArtifactError:
            raise
        except Exception as error:  # each cloud has errors of its own
            raise ArtifactError(f"trained models: cannot store them ({error})") from error
    # Last, so that whoever reads it finds the whole file.
    study.set_user_attr(
        WEIGHTS_ATTR, {"artifact_id": artifact, "sha256": hashlib.sha256(content).hexdigest()}
    )


def shared_models(
    plan: SearchPlan,
    data: Graph,
    study: optuna.Study,
    store: ArtifactStore,
    own: StudyFile | None = None,
) -> list[nn.Module] | None:
    """Load the models that another worker trained.

    Args:
        plan:
            Plan of the study.
        data:
            Graph of the study.
        study:
            Study that names the artifact.
        store:
            Artifact store of the study.
        own:
            File that makes the models, if they are the user's own.

    Returns:
        The models, or ``None`` if the study shares none or this machine cannot reach them.

    Raises:
        ArtifactError:
            If the file is damaged, or of another model.
    """
    known = stored_mapping(study, WEIGHTS_ATTR, what="trained models")
    if known is None:
        return None
    with reading("trained models", study):
        known = {name: str(known[name]) for name in ("artifact_id", "sha256")}
    try:
        with store.open_reader(known["artifact_id"]) as reader:
            content = reader.read()
    except Exception as error:  # each store has errors of its own; the fingerprint decides
        _logger.warning(
            "trained models: cannot read artifact %s (%s); training them again here",
            known["artifact_id"],
            " ".join(str(error).split()) or type(error).__name__,
        )
        return None
    label = f"trained models of study {study.study_name!r}, artifact {known['artifact_id']}"
    if hashlib.sha256(content).hexdigest() != known["sha256"]:
        raise ArtifactError(f"{label}: its checksum differs, the file was altered; copy it again")
    models = [_untrained(plan, data, seed, own) for seed in plan.training_seeds]
    try:
        tensors = safetensors.torch.load(content)
        for index, model in enumerate(models):
            prefix = f"{index}."
            _load(
                model,
                {
                    name.removeprefix(prefix): value
                    for name, value in tensors.items()
                    if name.startswith(prefix)
                },
            )
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(f"{label}: expected weights of {plan.subject}, got others") from error
    return [model.eval() for model in models]


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    shapes, expected = (
        {name: value.shape for name, value in one.items()} for one in (state, named_state(model))
    )
    if shapes != expected:
        raise ValueError("names or shapes differ")
    restore_state(model, state)


def _untrained(plan: SearchPlan, data: Graph, seed: int, own: StudyFile | None) -> nn.Module:
    if own is not None:
        return own.untrained(plan, data, seed)
    assert plan.model is not None
    classes = int(data.y.max()) + 1
    return make_model(plan.model, data.num_features, classes, seed=seed).to(data.x.device)
