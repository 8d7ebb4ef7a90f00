"""Reads the published files of the known data sets without running code from them.

The files of Planetoid are pickles, which may call any function when they are read. Here only the
few that arrays, sparse matrices and lists are made of may be called. What PyG has processed
before (``processed/data.pt``) is a pickle, too, and is not read at all.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import scipy.sparse as sp
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.io.npz import parse_npz
from torch_geometric.io.planetoid import read_planetoid_data
from torch_geometric.utils import coalesce, to_undirected

from sgquant_optuna.exceptions import GraphError

# Names that the published files use, of NumPy 1, NumPy 2 and old and new SciPy.
_HARMLESS = {
    ("__builtin__", "list"),
    ("builtins", "list"),
    ("collections", "defaultdict"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("scipy.sparse.csr", "csr_matrix"),
    ("scipy.sparse._csr", "csr_matrix"),
}
_PLANETOID_PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph")
_CACHE = "sgquant.safetensors"


class _ArraysOnly(pickle.Unpickler):
    """Reads arrays, sparse matrices, dictionaries and lists, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(
                f"it would call {module}.{name}, which no array needs: do not trust this file"
            )
        return super().find_class(module, name)


def read_planetoid(raw: Path, name: str) -> Data:
    """Read Cora, CiteSeer or PubMed.

    Args:
        raw:
            Folder of the files ``ind.NAME.*``.
        name:
            Name of the graph.

    Raises:
        GraphError:
            If a file is damaged, or would call a function.
    """
    prefix = f"ind.{name.lower()}"
    # PyG reads what was checked here, whatever becomes of the files meanwhile.
    with tempfile.TemporaryDirectory() as folder:
        for part in (*_PLANETOID_PARTS, "test.index"):
            content = (raw / f"{prefix}.{part}").read_bytes()
            if part in _PLANETOID_PARTS:
                _check_pickle(content, raw / f"{prefix}.{part}")
            (Path(folder) / f"{prefix}.{part}").write_bytes(content)
        return read_planetoid_data(folder, name)


def _check_pickle(content: bytes, path: Path) -> None:
    try:
        _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise GraphError(
            f"{path}: expected a pickle of arrays ({type(error).__name__}: {error}); remove it "
            f"and load again"
        ) from error


def read_coauthors_or_products(raw: Path, file: str) -> Data:
    """Read an Amazon or Coauthor graph from its ``.npz`` file."""
    with np.load(raw / file, allow_pickle=False) as arrays:
        return parse_npz(arrays, to_undirected=True)


def read_reddit(raw: Path) -> Data:
    """Read Reddit from its two ``.npz`` files, as PyG does."""
    with np.load(raw / "reddit_data.npz", allow_pickle=False) as arrays:
        x = torch.from_numpy(arrays["feature"]).float()
        y = torch.from_numpy(arrays["label"]).long()
        split = torch.from_numpy(arrays["node_types"])
    edges = sp.load_npz(raw / "reddit_graph.npz").tocoo()
    edge_index = torch.from_numpy(np.stack([edges.row, edges.col])).long()
    data = Data(x=x, edge_index=coalesce(edge_index, num_nodes=len(x)), y=y)
    for number, mask in enumerate(("train_mask", "val_mask", "test_mask"), start=1):
        data[mask] = split == number
    return data


def read_ogbn_arxiv(folder: Path) -> Data:
    """Read ogbn-arxiv from the tables of OGB, with its citations in both directions.

    Args:
        folder:
            Folder with ``raw`` and ``split``.
    """
    x = torch.from_numpy(_table(folder / "raw" / "node-feat.csv.gz", np.float32))
    edges = torch.from_numpy(_table(folder / "raw" / "edge.csv.gz", np.int64)).T
    data = Data(
        x=x,
        edge_index=to_undirected(edges.contiguous(), num_nodes=len(x)),
        y=torch.from_numpy(_table(folder / "raw" / "node-label.csv.gz", np.int64)).flatten(),
    )
    for split, mask in (("train", "train_mask"), ("valid", "val_mask"), ("test", "test_mask")):
        nodes = torch.from_numpy(_table(folder / "split" / "time" / f"{split}.csv.gz", np.int64))
        data[mask] = torch.zeros(len(x), dtype=torch.bool)
        data[mask][nodes.flatten()] = True
    return data


def _table(path: Path, dtype: type) -> np.ndarray[Any, Any]:
    with gzip.open(path, "rt") as lines:
        return np.loadtxt(lines, delimiter=",", dtype=dtype, ndmin=2)


def kept(folder: Path, raw: list[Path], read: Callable[[], Data]) -> Data:
    """Return a graph from the copy that was kept of it, or read it and keep a copy.

    The copy is a safetensors file, which holds tensors and no code. It is of use as long as no raw
    file has changed.

    Args:
        folder:
            Folder of the copy; one that cannot be written is left alone.
        raw:
            Files that the graph is read from.
        read:
            Function that reads them.
    """
    known = _state_of(raw)
    try:
        with safetensors.safe_open(folder / _CACHE, "pt") as file:
            if (file.metadata() or {}).get("raw") == known:
                return Data(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError):
        pass
    data = read()
    columns = {name: value.contiguous() for name, value in data if isinstance(value, Tensor)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, suffix=f".{_CACHE}", delete=False) as file:
            pass
        try:
            safetensors.torch.save_file(columns, file.name, {"raw": known})
            os.replace(file.name, folder / _CACHE)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    except (OSError, SafetensorError):  # a folder of another user, a full disk: read it next time
        pass
    return data


def _state_of(paths: list[Path]) -> str:
    found = [(path.name, path.stat()) for path in paths]
    return "; ".join(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in found)
