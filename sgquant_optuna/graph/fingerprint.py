"""What tells one graph or model from another: sizes, hashes, and a sketch of the weights."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from sgquant_optuna.graph.sparse_features import SparseFeatures

_SKETCH_SIZE = 16


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
