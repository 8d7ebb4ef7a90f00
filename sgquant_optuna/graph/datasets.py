"""Graphs for node classification: loading by name, random splits, and checks of any graph."""

from __future__ import annotations

import contextlib
import difflib
import io
import math
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch_geometric.data import Data, Dataset, HeteroData
from torch_geometric.datasets import Amazon, Coauthor, Planetoid, Reddit
from torch_geometric.transforms import NormalizeFeatures
from torch_geometric.utils import coalesce, to_undirected

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.sparse_features import SparseFeatures

DATA_VARIABLE = "SGQUANT_DATA"
DIGITS = "digits"

_DIGITS_NEIGHBOURS = 8
_DOWNLOAD_TIMEOUT = 20.0  # seconds without an answer of the server

_DATASETS: dict[str, tuple[type[Dataset], str, str | None]] = {
    "Cora": (Planetoid, "planetoid", "Cora"),
    "CiteSeer": (Planetoid, "planetoid", "CiteSeer"),
    "PubMed": (Planetoid, "planetoid", "PubMed"),
    "Computers": (Amazon, "amazon", "Computers"),
    "Photo": (Amazon, "amazon", "Photo"),
    "CS": (Coauthor, "coauthor", "CS"),
    "Physics": (Coauthor, "coauthor", "Physics"),
    "Reddit": (Reddit, "reddit", None),
}
_OGBN_ARXIV = "ogbn-arxiv"
GRAPH_NAMES = (DIGITS, *_DATASETS, _OGBN_ARXIV)
"""Names that :func:`load_graph` accepts."""


def load_graph(
    name: str,
    root: str | Path | None = None,
    *,
    seed: int = 0,
    normalize_features: bool = False,
) -> Data:
    """Load a graph by its name.

    Raw files in ``root`` are read without network, from the folders of PyG's data set classes:
    ``root/planetoid/Cora/raw``, ``root/amazon/Computers/raw``, ``root/coauthor/CS/raw``,
    ``root/reddit/raw``. Missing files are downloaded. The Planetoid files are published as
    pickles, which can run code when they are read: use them only from a source that you trust.

    Args:
        name:
            One of :data:`GRAPH_NAMES`, in upper or lower case. ``"digits"`` needs no files: its
            nodes are the 1,797 handwritten digits of scikit-learn, its edges join each with its
            8 nearest neighbours.
        root:
            Folder of data sets; by default ``$SGQUANT_DATA``, or else ``data``.
        seed:
            Seed of the split, for graphs without a public split: 20 training and 30 validation
            nodes of each class. It is recorded as ``data.split_seed``.
        normalize_features:
            Whether each row of the features is divided by its sum, by ``NormalizeFeatures`` of
            ``torch_geometric.transforms``.

    Returns:
        Graph with ``x`` (``[N, F]`` float), ``edge_index`` (``[2, E]`` int64), ``y`` (``[N]``
        int64), ``train_mask``, ``val_mask`` and ``test_mask`` (``[N]`` bool) and ``name``.

    Raises:
        GraphError:
            If there is no such graph, its files cannot be downloaded, read or processed, or a
            feature is negative and rows are to be divided by their sums.
    """
    known = {candidate.lower(): candidate for candidate in GRAPH_NAMES}
    if name.lower() not in known:
        close = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"; did you mean {known[close[0]]}?" if close else ""
        raise GraphError(f"graph: expected one of {', '.join(GRAPH_NAMES)}, got {name!r}{hint}")
    name = known[name.lower()]
    if name == DIGITS:
        data = _digits()
    else:
        folder = Path(root if root is not None else os.environ.get(DATA_VARIABLE, "data"))
        data = _load_ogbn_arxiv(folder) if name == _OGBN_ARXIV else _load(name, folder)
    if "train_mask" not in data:
        data = random_split(data, seed=seed)
    data.name = name
    if normalize_features:
        smallest = float(data.x.min())
        if smallest < 0:
            raise GraphError(
                f"graph {name}: expected features >= 0 to divide each row by its sum, got "
                f"{smallest:.3g}; take them as they are"
            )
        data = NormalizeFeatures()(data)
    return data


def random_split(
    data: Data, *, num_train_per_class: int = 20, num_val_per_class: int = 30, seed: int = 0
) -> Data:
    """Return a copy of a graph with random masks for training, validation and test.

    Args:
        data:
            Graph with ``y``, ``[N]`` int64.
        num_train_per_class:
            Number of training nodes of each class.
        num_val_per_class:
            Number of validation nodes of each class; all other nodes are test nodes.
        seed:
            Seed of the split. It is recorded as ``split_seed``.

    Returns:
        Copy with ``train_mask``, ``val_mask`` and ``test_mask``, ``[N]`` bool each.

    Raises:
        GraphError:
            If a class has too few nodes for at least one test node.

    Reference:
        Shchur et al., "Pitfalls of Graph Neural Network Evaluation", 2018.
    """
    y = data.y
    assert isinstance(y, Tensor)
    generator = torch.Generator().manual_seed(seed)
    masks = {
        name: torch.zeros(len(y), dtype=torch.bool)
        for name in ("train_mask", "val_mask", "test_mask")
    }
    cuts = (num_train_per_class, num_train_per_class + num_val_per_class)
    for label in y.unique().tolist():
        nodes = (y == label).nonzero().flatten().cpu()
        if len(nodes) <= cuts[1]:
            raise GraphError(
                f"split: expected more than {cuts[1]} nodes of class {label}, got {len(nodes)}"
            )
        nodes = nodes[torch.randperm(len(nodes), generator=generator)]
        for mask, part in zip(masks.values(), nodes.tensor_split(cuts), strict=True):
            mask[part] = True
    split = data.clone()
    for name, mask in masks.items():
        split[name] = mask.to(y.device)
    split.split_seed = seed
    return split


def check_graph(data: Data) -> None:
    """Check that a graph has the columns that a training and a search need.

    Args:
        data:
            Graph with ``x`` (``[N, F]`` float), ``edge_index`` (``[2, E]`` int64) or ``adj_t``
            (``[N, N]`` sparse), ``y`` (``[N]`` int64), ``train_mask``, ``val_mask`` and optionally
            ``test_mask`` (``[N]`` bool).

    Raises:
        GraphError:
            If a column is missing or has another type or shape, a feature is not finite or so
            large that a norm overflows, an edge ends outside the nodes, a training or validation
            node has no class, a mask is empty, or two masks overlap.
    """
    check_columns(data)
    y, num_nodes = data.y, data.x.shape[0]
    names = ["train_mask", "val_mask", *(["test_mask"] if "test_mask" in data else [])]
    masks = {name: _column(data, name) for name in names}
    for name, mask in masks.items():
        fits = mask.dtype == torch.bool and mask.shape == (num_nodes,)
        _check(fits, name, f"bool [{num_nodes}]", mask, _mask_advice(name, mask))
        if name != "test_mask":
            _check(bool(mask.any()), name, "at least one node", "none")
            labels = y[mask]
            _check(int(labels.min()) >= 0, "y", f"a class for each node of {name}", "-1")
    for first, second in (("train_mask", "val_mask"), *((n, "test_mask") for n in names[:2])):
        if second in masks:
            shared = int((masks[first] & masks[second]).sum())
            _check(not shared, first, f"no node of {second}", f"{shared} of them")


def check_columns(data: Data) -> None:
    """Check features, edges and labels of a graph, as :func:`check_graph` does, but no mask."""
    check_type(data)
    x, y = _column(data, "x"), _column(data, "y")
    advice = "data.x = data.x.float()" if x.dim() == 2 and not x.is_complex() else None
    _check(x.dim() == 2 and x.is_floating_point(), "x", "float features [N, F]", x, advice)
    num_nodes = x.shape[0]
    _check_size_of_values(x)
    if "edge_index" not in data and "adj_t" in data:
        adj_t: Any = data.adj_t
        sizes = [adj_t.size(0), adj_t.size(1)]
        _check(sizes == [num_nodes] * 2, "adj_t", f"[{num_nodes}, {num_nodes}]", str(sizes))
    else:
        _check_edges(_column(data, "edge_index"), num_nodes)
    fits = y.dtype == torch.long and y.shape == (num_nodes,)
    _check(fits, "y", f"int64 [{num_nodes}]", y, _label_advice(y, num_nodes))


def check_type(data: object) -> None:
    """Check that this is one graph, whose nodes and edges are of one type.

    Raises:
        GraphError:
            If it is a data set of graphs, a heterogeneous graph, or no graph at all.
    """
    if isinstance(data, Data):
        return
    advice = "make one with torch_geometric.data.Data"
    if isinstance(data, HeteroData):
        advice = "data.to_homogeneous() makes one of nodes and edges of one type"
    elif isinstance(data, TorchDataset):
        advice = "a data set holds graphs: take dataset[0]"
    raise GraphError(f"graph: expected torch_geometric.data.Data, got {_kind(data)}; {advice}")


def _check_size_of_values(x: Tensor) -> None:
    values = x.non_zeros if isinstance(x, SparseFeatures) else x
    if not values.numel():
        return
    low, high = (float(value) for value in values.aminmax())  # NaN if there is one
    _check(math.isfinite(low) and math.isfinite(high), "x", "finite numbers", "NaN or infinity")
    # Norms and variances sum up squares, in float32 at least.
    dtype = torch.promote_types(x.dtype, torch.float32)
    limit = math.sqrt(torch.finfo(dtype).max / x.shape[1])
    largest = max(-low, high)
    _check(
        largest <= limit,
        "x",
        f"values up to {limit:.1g}, whose squares can be added up",
        f"{largest:.3g}",
        "scale the features",
    )


def _check_edges(edge_index: Tensor, num_nodes: int) -> None:
    shaped = edge_index.dim() == 2 and edge_index.shape[0] == 2
    integers = not (edge_index.is_floating_point() or edge_index.is_complex())
    _check(
        shaped and edge_index.dtype == torch.long,
        "edge_index",
        "int64 [2, E]",
        edge_index,
        "data.edge_index = data.edge_index.long()" if shaped and integers else None,
    )
    if edge_index.numel():
        low, high = int(edge_index.min()), int(edge_index.max())
        expected = f"nodes from 0 to {num_nodes - 1}"
        _check(0 <= low and high < num_nodes, "edge_index", expected, f"{low} to {high}")


def _label_advice(y: Tensor, num_nodes: int) -> str | None:
    if y.shape == (num_nodes, 1) and y.dtype == torch.long:
        return "data.y = data.y.flatten()"
    if y.dim() == 2 and y.shape[1] > 1:
        return "data.y = data.y.argmax(dim=1) if each row marks one class"
    if y.shape in ((num_nodes,), (num_nodes, 1)):
        return "data.y = data.y.flatten().long() if these are classes"
    return None


def _mask_advice(name: str, mask: Tensor) -> str | None:
    if mask.dim() == 2:
        return (
            f"it holds {mask.shape[1]} splits: choose one of them, as in "
            f"data.{name} = data.{name}[:, 0], for every mask"
        )
    if mask.dim() == 1 and mask.dtype != torch.bool:
        return f"data.{name} = data.{name}.bool(), or index_to_mask() of PyG for numbers of nodes"
    return None


def _column(data: Data, name: str) -> Tensor:
    column = data.get(name)
    if not isinstance(column, Tensor):
        hint = "; random_split() makes masks" if name.endswith("mask") else ""
        got = "" if column is None else f" a tensor, got {_kind(column)};"
        raise GraphError(
            f"column {name}: expected{got or ' one,'} the graph has {list(data.keys())}{hint}"
        )
    return column


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _check(
    holds: bool, name: str, expected: str, got: Tensor | str, advice: str | None = None
) -> None:
    if not holds:
        if isinstance(got, Tensor):
            got = f"{str(got.dtype).removeprefix('torch.')} {list(got.shape)}"
        then = f"; {advice}" if advice else ""
        raise GraphError(f"column {name}: expected {expected}, got {got}{then}")


def _digits() -> Data:
    from sklearn.datasets import load_digits
    from sklearn.neighbors import kneighbors_graph

    digits = load_digits()
    x = torch.from_numpy(digits.data).float() / 16  # pixel values are 0 to 16
    neighbours = kneighbors_graph(digits.data, _DIGITS_NEIGHBOURS).tocoo()
    edge_index = torch.stack(
        [torch.from_numpy(neighbours.row).long(), torch.from_numpy(neighbours.col).long()]
    )
    edge_index = coalesce(to_undirected(edge_index, num_nodes=len(x)), num_nodes=len(x))
    return Data(x=x, edge_index=edge_index, y=torch.from_numpy(digits.target).long())


def _load(name: str, root: Path) -> Data:
    make, folder, part = _DATASETS[name]
    where = root / folder
    arguments = [str(where)] if part is None else [str(where), part]
    with _loading_errors(name, where, lambda: _missing_files(make, where, part)):
        data: Any = make(*arguments)[0]
    assert isinstance(data, Data)
    return data


def _missing_files(make: type[Dataset], where: Path, part: str | None) -> list[Path]:
    """Return the raw files of a data set that are missing, without loading it."""
    dataset: Any = object.__new__(make)
    dataset.root, dataset.split = str(where), "public"
    if part is not None:
        dataset.name = part
    return [Path(path) for path in dataset.raw_paths if not Path(path).exists()]


def _load_ogbn_arxiv(root: Path) -> Data:
    try:
        from ogb.nodeproppred import PygNodePropPredDataset
    except ImportError:
        raise GraphError(
            f"graph {_OGBN_ARXIV}: it needs another package; pip install 'sgquant-optuna[ogb]'"
        ) from None
    where = root / "ogb"
    with _loading_errors(_OGBN_ARXIV, where, lambda: [where / "ogbn_arxiv" / "raw"]):
        dataset = PygNodePropPredDataset(_OGBN_ARXIV, root=str(where))
        data: Data = dataset[0]
        data.y = data.y.flatten()
        # Its edges are directed citations; models are trained on them in both directions.
        data.edge_index = to_undirected(data.edge_index, num_nodes=data.num_nodes)
        for split, key in (("train", "train"), ("val", "valid"), ("test", "test")):
            mask = torch.zeros(data.num_nodes, dtype=torch.bool)
            mask[dataset.get_idx_split()[key]] = True
            data[f"{split}_mask"] = mask
    return data


@contextlib.contextmanager
def _loading_errors(name: str, where: Path, missing: Callable[[], list[Path]]) -> Iterator[None]:
    """Turn any failure to load a data set into a GraphError that names the file."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        # PyG writes each step to stderr, between the lines of our own log.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except GraphError:
        raise
    except Exception as error:  # a damaged pickle or archive or the network may raise anything
        absent = missing()
        if absent:
            raise GraphError(
                f"graph {name}: cannot download {absent[0].name} "
                f"({type(error).__name__}: {error}); put it into {absent[0].parent}, or name "
                f"another folder with --root or {DATA_VARIABLE}"
            ) from error
        if isinstance(error, PermissionError) or not os.access(where, os.W_OK):
            raise GraphError(
                f"graph {name}: cannot write the processed files below {where}; copy the data "
                f"sets to a folder that can be written"
            ) from error
        raise GraphError(
            f"graph {name}: cannot read the files below {where} ({type(error).__name__}: "
            f"{error}); they may be damaged: remove them and load again"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
