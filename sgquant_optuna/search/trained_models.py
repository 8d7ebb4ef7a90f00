"""Graph and full-precision models of a plan: trained once, and shared as one file of the study."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import safetensors.torch
from optuna.artifacts import upload_artifact
from safetensors import SafetensorError
from torch import nn
from torch_geometric.data import Data

from sgquant_optuna.exceptions import ArtifactError
from sgquant_optuna.graph.datasets import load_graph
from sgquant_optuna.graph.paper_models import make_model
from sgquant_optuna.graph.training import fit
from sgquant_optuna.storage.attributes import WEIGHTS_ATTR
from sgquant_optuna.study.plan import SearchPlan
from sgquant_optuna.study.stored_values import reading, stored_mapping

if TYPE_CHECKING:
    from sgquant_optuna.storage.artifacts import ArtifactStore

FILE_NAME = "full_precision.safetensors"

_logger = logging.getLogger(__name__)


def load_plan_graph(
    plan: SearchPlan, root: str | Path | None = None, *, device: str = "cpu"
) -> Data:
    """Load the graph of a plan as it trains on it; ``root`` is the folder of data sets."""
    data = load_graph(
        plan.dataset, root, seed=plan.seed, normalize_features=plan.normalize_features
    )
    return data.to(device)


def train_model(plan: SearchPlan, data: Data, seed: int) -> nn.Module:
    """Train a full-precision model of a plan from a seed."""
    model = _untrained(plan, data, seed)
    fit(model, data, plan.training, seed=seed)
    return model


def train_models(plan: SearchPlan, data: Data) -> list[nn.Module]:
    """Train the models that each trial of a plan is measured on."""
    return [train_model(plan, data, seed) for seed in plan.training_seeds]


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
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, model in enumerate(models)
        for name, value in model.state_dict().items()
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
    plan: SearchPlan, data: Data, study: optuna.Study, store: ArtifactStore
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
    models = [_untrained(plan, data, seed) for seed in plan.training_seeds]
    try:
        tensors = safetensors.torch.load(content)
        for index, model in enumerate(models):
            prefix = f"{index}."
            model.load_state_dict(
                {
                    name.removeprefix(prefix): value
                    for name, value in tensors.items()
                    if name.startswith(prefix)
                }
            )
    except (SafetensorError, RuntimeError) as error:
        raise ArtifactError(f"{label}: expected weights of {plan.model}, got others") from error
    return [model.eval() for model in models]


def _untrained(plan: SearchPlan, data: Data, seed: int) -> nn.Module:
    classes = int(data.y.max()) + 1
    return make_model(plan.model, data.num_features, classes, seed=seed).to(data.x.device)
