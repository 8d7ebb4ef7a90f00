"""Tiny seeded graphs and models, made here: no test downloads anything."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Before torch: several test processes with several spinning threads each starve one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import optuna
import pytest
import torch
from torch import nn
from torch_geometric.data import Data

from sgquant_optuna.graph.paper_models import GCN
from sgquant_optuna.graph.training import fit
from sgquant_optuna.graph.training_config import TrainingConfig
from sgquant_optuna.search.objective import QuantizationObjective
from tests.small_search import a_plan, prepare

_REAL_DATA = os.environ.get("SGQUANT_DATA")  # tests on real data alone see it


@pytest.fixture
def real_data() -> Path:
    """Folder of real data sets; a test without one is skipped."""
    if _REAL_DATA is None:
        pytest.skip("needs real data sets: SGQUANT_DATA")
    return Path(_REAL_DATA).resolve()


@pytest.fixture(autouse=True)
def away_from_the_users_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("SGQUANT_STORAGE", "SGQUANT_ARTIFACTS", "SGQUANT_DATA", "SGQUANT_STUDY"):
        monkeypatch.delenv(variable, raising=False)
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(autouse=True)
def as_before_a_command_logged() -> Iterator[None]:
    """A command that runs in the process of the tests sets up the package's log for good."""
    logger = logging.getLogger("sgquant_optuna")
    before = list(logger.handlers), logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


def make_graph(num_nodes: int = 60, num_features: int = 12, seed: int = 0) -> Data:
    """A graph of three classes whose features and edges both tell the class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(num_nodes) % 3
    centers = torch.rand(3, num_features, generator=generator)
    x = centers[y] + 0.3 * torch.rand(num_nodes, num_features, generator=generator)
    source = torch.randint(num_nodes, (6 * num_nodes,), generator=generator)
    target = torch.randint(num_nodes, (6 * num_nodes,), generator=generator)
    keep = (y[source] == y[target]) & (source != target) & (target % 7 != 0)
    edge_index = torch.stack([source[keep], target[keep]]).unique(dim=1)
    order = torch.randperm(num_nodes, generator=generator)
    masks = [torch.zeros(num_nodes, dtype=torch.bool) for _ in range(3)]
    for mask, part in zip(masks, order.tensor_split(3), strict=True):
        mask[part] = True
    train_mask, val_mask, test_mask = masks
    return Data(
        x=x,
        edge_index=edge_index,
        y=y,
        train_mask=train_mask,
        val_mask=val_mask,
        test_mask=test_mask,
    )


@pytest.fixture
def graph() -> Data:
    """60 nodes, 12 features, 3 classes; every seventh node is isolated as a target."""
    return make_graph()


@pytest.fixture(scope="session")
def _prepared_search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("search")
    prepare(folder, a_plan())
    return folder


@pytest.fixture
def folder(_prepared_search: Path, tmp_path: Path) -> Path:
    """A folder with the study ``s.db`` of ``small_search.a_plan`` and its artifacts, no trials."""
    return shutil.copytree(_prepared_search, tmp_path / "copy")


FAST = TrainingConfig(epochs=3, patience=3)


@pytest.fixture
def trained_gcn(graph: Data) -> nn.Module:
    torch.manual_seed(0)
    model = GCN(12, 3, hidden_channels=8)
    fit(model, graph, TrainingConfig(epochs=30), seed=0)
    return model


@pytest.fixture
def objective(trained_gcn: nn.Module, graph: Data) -> QuantizationObjective:
    """A GCN with two layers and two degree buckets: four parameters."""
    return QuantizationObjective(
        trained_gcn, graph, max_drop=5.0, confidence=0.9, degree_edges=(2,), finetuning=FAST
    )
