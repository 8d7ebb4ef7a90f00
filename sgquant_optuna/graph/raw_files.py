"""Reads the published files of the known data sets without running code from them.

The files of Planetoid are pickles, which :mod:`.pickled_values` reads without calling anything.
What PyG has processed before (``processed/data.pt``) is a pickle, too, and is not read at all.
Sizes and indices are checked by :mod:`.raw_arrays` before anything computes with them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.io.npz import parse_npz
from torch_geometric.utils import coalesce, remove_self_loops, to_undirected

from sgquant_optuna.graph.columns import MASKS
from sgquant_optuna.graph.raw_arrays import (
    Array,
    check_column,
    check_csr,
    check_places,
    check_size,
    pickled_rows,
    read_npz,
    read_pickle,
    read_table,
    reading_raw,
)

_COLUMNS = ("x", "edge_index", "y", *MASKS)
_CACHE = "sgquant.safetensors"
_SPARSE = ("data", "indices", "indptr", "shape")
_NUM_VALIDATION = 500  # of the public split of Planetoid


def read_planetoid(raw: Path, name: str) -> Data:
    """Read Cora, CiteSeer or PubMed.

    Args:
        raw:
            Folder of the files ``ind.NAME.*``.
        name:
            Name of the graph.

    Raises:
        GraphError:
            If a file is damaged, would call a function, or does not fit the others.
    """
    prefix = f"ind.{name.lower()}"
    parts = {part: _rows(raw / f"{prefix}.{part}") for part in ("x", "tx", "allx")}
    labels = {part: _rows(raw / f"{prefix}.{part}") for part in ("y", "ty", "ally")}
    index_file, graph_file = raw / f"{prefix}.test.index", raw / f"{prefix}.graph"
    with reading_raw(raw / f"{prefix}.*", "parts of one graph"):
        for (part, rows), (other, of_rows) in zip(parts.items(), labels.items(), strict=True):
            _same(f"rows of {part} and {other}", len(rows), len(of_rows))
            _same(f"columns of {part} and allx", rows.shape[1], parts["allx"].shape[1])
            _same(f"columns of {other} and ally", of_rows.shape[1], labels["ally"].shape[1])
    with reading_raw(index_file, "numbers of the test nodes"):
        test = read_table(index_file, np.int64, columns=1)[:, 0]
        num_nodes = _check_test(test, parts, is_complete=name != "CiteSeer")
        _same("nodes with rows in tx", len(test), len(parts["tx"]))
    with reading_raw(graph_file, "a pickle of neighbours"):
        edge_index = _edges(read_pickle(graph_file), num_nodes, graph_file.stat().st_size)
    x, y = (_placed(both, test, num_nodes) for both in (parts, labels))
    data = Data(x=x, edge_index=edge_index, y=y.max(dim=1)[1])
    num_train = len(parts["x"])
    for mask, nodes in zip(
        MASKS,
        (slice(num_train), slice(num_train, num_train + _NUM_VALIDATION), torch.from_numpy(test)),
        strict=True,
    ):
        data[mask] = torch.zeros(num_nodes, dtype=torch.bool)
        data[mask][nodes] = True
    return data


def _rows(path: Path) -> Array:
    with reading_raw(path, "a pickle of arrays"):
        return pickled_rows(read_pickle(path))


def _same(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"{what}: expected {expected}, got {found}")


def _check_test(test: Array, parts: dict[str, Array], *, is_complete: bool) -> int:
    """Check the numbers of the test nodes, which follow the others, and return that of all."""
    first = len(parts["allx"])
    num_nodes = int(test.max()) + 1
    check_size(max(num_nodes, 1), parts["allx"].shape[1])
    if int(test.min()) != first or len(np.unique(test)) != len(test):
        raise ValueError(f"expected each once, from {first} on, got others")
    if is_complete:  # CiteSeer has nodes that nothing is known of
        _same("number of nodes", num_nodes, first + len(test))
    if len(parts["x"]) + _NUM_VALIDATION > first:
        raise ValueError(f"expected {_NUM_VALIDATION} validation nodes before them, got fewer")
    return num_nodes


def _placed(parts: dict[str, Array], test: Array, num_nodes: int) -> Tensor:
    """Join the rows of the known nodes and of the test nodes, float32; others are zero."""
    _, of_test, known = parts.values()
    rows = torch.zeros(num_nodes, known.shape[1])
    rows[: len(known)] = torch.from_numpy(known).float()
    rows[torch.from_numpy(test)] = torch.from_numpy(of_test).float()
    return rows


def _edges(graph: Any, num_nodes: int, most: int) -> Tensor:
    """Return the edges of lists of neighbours by node, ``[2, E]``.

    Args:
        graph:
            Value that the pickle describes.
        num_nodes:
            Number of nodes.
        most:
            Largest number of edges: one list may stand for many nodes in a few bytes.
    """
    if not isinstance(graph, dict) or not all(isinstance(n, list) for n in graph.values()):
        raise ValueError("expected a list for each node, got something else")
    if sum(map(len, graph.values())) > most:
        raise ValueError("expected fewer edges than bytes")
    for place in (node for pair in graph.items() for node in (pair[0], *pair[1])):
        if type(place) is not int or not 0 <= place < num_nodes:
            raise ValueError(f"expected nodes from 0 to {num_nodes - 1}, got another")
    source = [node for node, neighbours in graph.items() for _ in neighbours]
    target = [other for neighbours in graph.values() for other in neighbours]
    edge_index = torch.tensor([source, target], dtype=torch.long)
    edge_index, _ = remove_self_loops(edge_index)
    ordered: Tensor = coalesce(edge_index, num_nodes=num_nodes, sort_by_row=False)
    return ordered


def read_coauthors_or_products(path: Path) -> Data:
    """Read an Amazon or Coauthor graph from its ``.npz`` file.

    Raises:
        GraphError:
            If it is damaged, or its parts do not fit one another.
    """
    with reading_raw(path, "an archive of arrays"):
        names = [f"{kind}_{part}" for kind in ("attr", "adj") for part in _SPARSE]
        arrays = read_npz(path, [*names, "labels"])
        shapes = [
            check_csr(*(arrays[f"{kind}_{part}"] for part in _SPARSE)) for kind in ("attr", "adj")
        ]
        check_size(*shapes[0])
        _same("rows of the adjacency", shapes[1][0], shapes[0][0])
        _same("columns of the adjacency", shapes[1][1], shapes[0][0])
        check_column(arrays["labels"], "labels", "iu", shapes[0][0])
        return parse_npz(arrays, to_undirected=True)


def read_reddit(raw: Path) -> Data:
    """Read Reddit from its two ``.npz`` files, as PyG does.

    Raises:
        GraphError:
            If one is damaged, or they do not fit one another.
    """
    nodes, graph = raw / "reddit_data.npz", raw / "reddit_graph.npz"
    with reading_raw(nodes, "an archive of arrays"):
        arrays = read_npz(nodes, ("feature", "label", "node_types"))
        num_nodes = len(arrays["feature"])
        check_column(arrays["label"], "label", "iu", num_nodes)
        check_places(arrays["node_types"], "node_types", 4, num_nodes)
        x = torch.from_numpy(arrays["feature"]).float()
    with reading_raw(graph, "an archive of arrays"):
        ends = read_npz(graph, ("row", "col"))
        check_places(ends["row"], "row", num_nodes)
        check_places(ends["col"], "col", num_nodes, len(ends["row"]))
        edge_index = torch.from_numpy(np.stack([ends["row"], ends["col"]])).long()
    y = torch.from_numpy(arrays["label"]).long()
    data = Data(x=x, edge_index=coalesce(edge_index, num_nodes=num_nodes), y=y)
    split = torch.from_numpy(arrays["node_types"])
    for number, mask in enumerate(MASKS, start=1):
        data[mask] = split == number
    return data


def read_ogbn_arxiv(folder: Path) -> Data:
    """Read ogbn-arxiv from the tables of OGB, with its citations in both directions.

    Args:
        folder:
            Folder with ``raw`` and ``split``.

    Raises:
        GraphError:
            If a table is damaged, or does not fit the others.
    """
    x = torch.from_numpy(_table(folder / "raw" / "node-feat.csv.gz", np.float32))
    edges = _table(folder / "raw" / "edge.csv.gz", np.int64, 2, end=len(x))
    data = Data(
        x=x,
        edge_index=to_undirected(torch.from_numpy(edges).T.contiguous(), num_nodes=len(x)),
        y=torch.from_numpy(_table(folder / "raw" / "node-label.csv.gz", np.int64, 1)).flatten(),
    )
    for split, mask in zip(("train", "valid", "test"), MASKS, strict=True):
        nodes = _table(folder / "split" / "time" / f"{split}.csv.gz", np.int64, 1, end=len(x))
        data[mask] = torch.zeros(len(x), dtype=torch.bool)
        data[mask][torch.from_numpy(nodes).flatten()] = True
    return data


def _table(path: Path, dtype: type, columns: int | None = None, end: int | None = None) -> Array:
    """Read a table; ``end`` is the number of nodes where it names nodes."""
    with reading_raw(path, "a table of numbers"):
        table = read_table(path, dtype, columns)
        if end is not None:
            check_places(table.reshape(-1), "nodes", end)
        return table


def check_columns(data: Data) -> None:
    """Check that what was read is a graph: types, shapes, nodes of the edges, classes.

    Raises:
        ValueError:
            If a column is missing or cannot be that of a graph.
    """
    for name, dtype, dimensions in (
        ("x", torch.float32, 2),
        ("edge_index", torch.int64, 2),
        ("y", torch.int64, 1),
        *((mask, torch.bool, 1) for mask in MASKS if mask in data),
    ):
        column = data.get(name)
        if not isinstance(column, Tensor) or (column.dtype, column.dim()) != (dtype, dimensions):
            raise ValueError(f"{name}: expected {dtype} of {dimensions} dimensions, got another")
        if name != "edge_index":
            _same(f"length of {name}", len(column), len(data.x))
    check_places(data.edge_index.reshape(-1).numpy(), "edges", len(data.x))
    _same("ends of the edges", len(data.edge_index), 2)
    check_places(data.y.numpy(), "classes", len(data.x))
    if not len(data.x) or not bool(torch.isfinite(data.x).all()):
        raise ValueError("x: expected finite features of some nodes, got others")


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
            Function that reads and checks them.
    """
    known = _state_of(raw)
    copy = _copy(folder / _CACHE, known)
    if copy is not None:
        return copy
    data = read()
    columns = {name: value.contiguous() for name, value in data if isinstance(value, Tensor)}
    try:
        _keep(folder, columns, known)
    except (OSError, SafetensorError):  # a folder of another user, a full disk: read it next time
        pass
    return data


def _keep(folder: Path, columns: dict[str, Tensor], known: str) -> None:
    """Write a copy in a folder of its own, which a killed writer leaves to the next one.

    It has one name, and is locked as long as its writer lives: of two at once, one keeps a copy.
    """
    own = folder / f"{_CACHE}.part"
    own.mkdir(parents=True, exist_ok=True)
    lock = os.open(own, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            safetensors.torch.save_file(columns, own / _CACHE, {"raw": known})
            os.replace(own / _CACHE, folder / _CACHE)
        finally:
            shutil.rmtree(own, ignore_errors=True)
    finally:
        os.close(lock)


def _copy(path: Path, known: str) -> Data | None:
    """Return the graph of a copy; ``None`` if it is of other raw files, or damaged."""
    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("raw") != known:
                return None
            names = [name for name in file.keys() if name in _COLUMNS]  # noqa: SIM118
            data = Data(**{name: file.get_tensor(name) for name in names})
        check_columns(data)
    except (OSError, SafetensorError, ValueError, RuntimeError, TypeError):
        return None
    return data


def _state_of(paths: list[Path]) -> str:
    found = [(path.name, path.stat()) for path in paths]
    return "; ".join(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in found)
