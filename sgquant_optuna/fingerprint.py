"""What a study was measured on, so that another graph, model, space or protocol is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from sgquant_optuna.exceptions import StudyMismatchError
from sgquant_optuna.sparse_features import SparseFeatures

Fingerprint = dict[str, Any]

_SKETCH_SIZE = 16
_LEAST_SIMILARITY = 0.95
_PARTS = {
    "graph": "graph",
    "model": "model",
    "weights": "model weights",
    "space": "search space",
    "protocol": "protocol",
}


def graph_fingerprint(data: Data) -> dict[str, Any]:
    """Describe a graph by sizes and a hash of every column that the search reads."""
    digest = hashlib.sha256()
    for name in ("x", "edge_index", "edge_attr", "edge_weight", "train_mask", "val_mask", "y"):
        column = data.get(name)
        if isinstance(column, Tensor):
            if isinstance(column, SparseFeatures):
                column = column.dense()
            digest.update(name.encode())
            digest.update(column.detach().cpu().contiguous().numpy().tobytes())
    return {
        "nodes": data.num_nodes,
        "edges": data.num_edges,
        "features": data.num_features,
        "hash": digest.hexdigest()[:16],
    }


def edges_fingerprint(data: Data) -> dict[str, Any]:
    """Describe the edges of a graph alone, for models that bring its features along."""
    digest = hashlib.sha256()
    for name in ("edge_index", "edge_attr", "edge_weight"):
        column = data.get(name)
        if isinstance(column, Tensor):
            digest.update(name.encode())
            digest.update(column.detach().cpu().contiguous().numpy().tobytes())
    return {"edges": data.num_edges, "hash": digest.hexdigest()[:16]}


def model_fingerprint(model: nn.Module) -> dict[str, Any]:
    """Describe a model by its text and the shapes of its parameters."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    digest = hashlib.sha256(f"{model}{shapes}".encode()).hexdigest()[:16]
    return {"class": type(model).__name__, "hash": digest}


def weights_sketch(model: nn.Module) -> list[float]:
    """Project all parameters on a few fixed random directions.

    Unlike a hash it forgives the rounding of another machine or thread count, and still tells
    weights of another seed: they point elsewhere.

    Returns:
        16 numbers of norm 1.
    """
    generator = torch.Generator().manual_seed(0)
    sketch = torch.zeros(_SKETCH_SIZE, dtype=torch.float64)
    for value in model.state_dict().values():
        flat = value.detach().cpu().double().flatten()
        signs = torch.randint(0, 2, (_SKETCH_SIZE, len(flat)), generator=generator)
        sketch += (signs.double() * 2 - 1) @ flat
    norm = float(sketch.norm())
    return [round(number, 6) for number in (sketch / norm if norm else sketch).tolist()]


def check_fingerprint(study_name: str, made_with: Fingerprint, now: Fingerprint) -> None:
    """Refuse a study that was measured on something else.

    Raises:
        StudyMismatchError:
            It names every part that differs, and how.
    """
    differences = []
    for part, label in _PARTS.items():
        if part == "weights":
            if _similarity(made_with[part], now[part]) < _LEAST_SIMILARITY:
                differences.append(f"{label} (trained otherwise, or from another seed)")
        elif made_with[part] != now[part]:
            differences.append(f"{label} ({_differences(made_with[part], now[part])})")
    if differences:
        raise StudyMismatchError(
            f"study {study_name!r} was made with another {'; another '.join(differences)}. "
            f"Repeat its settings to resume it, or choose another study name"
        )


def _similarity(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) if any(one) else 1.0


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key}: was {old.get(key)}, is {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    )
