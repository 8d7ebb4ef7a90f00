"""Graphs for node classification: loading by name, random splits, and checks of any graph."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data, Dataset, download_url, extract_zip
from torch_geometric.datasets import Amazon, Coauthor, Planetoid, Reddit
from torch_geometric.transforms import NormalizeFeatures
from torch_geometric.utils import coalesce, to_undirected

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.raw_arrays import brief, reading_raw
from sgquant_optuna.graph.raw_files import (
    check_columns,
    kept,
    read_coauthors_or_products,
    read_ogbn_arxiv,
    read_planetoid,
    read_reddit,
)

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
_OGBN_ARXIV_URL = "http://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip"
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
    ``root/reddit/raw``, ``root/ogb/ogbn_arxiv``. Missing files are downloaded. Nothing is
    unpickled: the arrays of the Planetoid files are read without calling what these name, and
    what PyG has processed before is not read. Every size and index is checked. Graphs of more
    than some megabytes are kept as ``processed/sgquant.safetensors``.

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
    # PyG's class knows names and addresses of the files. Its constructor would unpickle.
    dataset: Any = object.__new__(make)
    dataset.root, dataset.split, dataset.log = str(where), "public", False
    if part is not None:
        dataset.name = part
    paths = [Path(path) for path in dataset.raw_paths]
    raw = Path(dataset.raw_dir)

    def read() -> Data:
        if make is Planetoid:
            return read_planetoid(raw, name)
        if make is Reddit:
            return read_reddit(raw)
        return read_coauthors_or_products(paths[0])

    with _loading_errors(name, where, paths):
        if any(not path.exists() for path in paths):
            raw.mkdir(parents=True, exist_ok=True)
            dataset.download()
        if make is Planetoid:  # reading takes no longer than a copy of it would
            return _checked(read(), raw)
        return kept(Path(dataset.processed_dir), paths, lambda: _checked(read(), raw))


def _load_ogbn_arxiv(root: Path) -> Data:
    where = root / "ogb" / "ogbn_arxiv"
    tables = [where / "raw" / f"{name}.csv.gz" for name in ("edge", "node-feat", "node-label")]
    splits = [where / "split" / "time" / f"{name}.csv.gz" for name in ("train", "valid", "test")]
    paths = [*tables, *splits]
    with _loading_errors(_OGBN_ARXIV, where, paths):
        if any(not path.exists() for path in paths):
            archive = Path(download_url(_OGBN_ARXIV_URL, str(where.parent)))
            extract_zip(str(archive), str(where.parent))
            (where.parent / "arxiv").rename(where)
            archive.unlink()
        return kept(
            where / "processed", paths, lambda: _checked(read_ogbn_arxiv(where), where / "raw")
        )


def _checked(data: Data, raw: Path) -> Data:
    with reading_raw(raw, "files of one graph"):
        check_columns(data)
    return data


@contextlib.contextmanager
def _loading_errors(name: str, where: Path, paths: list[Path]) -> Iterator[None]:
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
        absent = [path for path in paths if not path.exists()]
        if absent:
            raise GraphError(
                f"graph {name}: cannot download {absent[0].name} "
                f"({brief(error)}); put it into {absent[0].parent}, or name "
                f"another folder with --root or {DATA_VARIABLE}"
            ) from error
        raise GraphError(
            f"graph {name}: cannot read the files below {where} ({brief(error)}); they may be "
            f"damaged: remove them and load again"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
