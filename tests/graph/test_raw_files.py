"""Published files are read as PyG reads them, and run no code."""

import gzip
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch_geometric.datasets import Amazon, Planetoid, Reddit

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph import raw_files
from sgquant_optuna.graph.datasets import load_graph
from tests.graph.test_datasets import write_amazon, write_planetoid

PLANETOID = "planetoid/Cora/raw"


class Crafted:
    """An object whose pickle runs a command when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def same(data, expected):
    for name in ("x", "edge_index", "y", "train_mask", "val_mask", "test_mask"):
        if name in expected:
            assert torch.equal(data[name], expected[name]), name


def write_reddit(folder: Path) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    np.savez(
        folder / "reddit_data.npz",
        feature=rng.random((40, 3)),
        label=np.arange(40) % 4,
        node_types=1 + np.arange(40) % 3,
    )
    ends = rng.integers(0, 40, (2, 90))
    adjacency = sp.coo_matrix((np.ones(90), tuple(ends)), (40, 40))
    sp.save_npz(folder / "reddit_graph.npz", adjacency)


def test_a_crafted_raw_file_runs_nothing_and_is_told(tmp_path):
    raw, marker = tmp_path / PLANETOID, tmp_path / "marker"
    write_planetoid(raw)
    (raw / "ind.cora.x").write_bytes(pickle.dumps(Crafted(marker)))
    with pytest.raises(
        GraphError, match=r"ind.cora.x: .*it would call (posix|nt).system"
    ) as error:
        load_graph("cora", tmp_path)
    assert "\n" not in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize("write", [write_planetoid, write_amazon, write_reddit])
def test_what_pyg_has_processed_is_not_read(write, tmp_path):
    name, folder = {
        write_planetoid: ("cora", "planetoid/Cora"),
        write_amazon: ("computers", "amazon/Computers"),
        write_reddit: ("reddit", "reddit"),
    }[write]
    write(tmp_path / folder / "raw")
    marker = tmp_path / "marker"
    (tmp_path / folder / "processed").mkdir()
    torch.save(Crafted(marker), tmp_path / folder / "processed" / "data.pt")
    if name == "reddit":
        load_graph(name, tmp_path)
    else:
        assert load_graph(name, tmp_path).num_nodes > 100
    assert not marker.exists()


def test_an_archive_of_objects_is_refused(tmp_path):
    raw = tmp_path / "amazon" / "Computers" / "raw"
    write_amazon(raw)
    marker, file = tmp_path / "marker", raw / "amazon_electronics_computers.npz"
    with np.load(file) as arrays:
        changed = {**arrays, "labels": np.array([Crafted(marker)] * 120, dtype=object)}
    np.savez(file, **changed)
    with pytest.raises(GraphError, match="Object arrays cannot be loaded"):
        load_graph("computers", tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("part", ["x", "graph", "ty"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_file_is_named(part, share, tmp_path):
    raw = tmp_path / PLANETOID
    write_planetoid(raw)
    file = raw / f"ind.cora.{part}"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(GraphError, match=f"ind.cora.{part}: expected a pickle of arrays"):
        load_graph("cora", tmp_path)


def test_graphs_equal_those_of_pyg(tmp_path):
    write_planetoid(tmp_path / PLANETOID)
    write_amazon(tmp_path / "amazon" / "Computers" / "raw")
    write_reddit(tmp_path / "reddit" / "raw")
    same(load_graph("cora", tmp_path), Planetoid(str(tmp_path / "planetoid"), "Cora")[0])
    for _ in range(2):  # read, then from the copy
        computers = Amazon(str(tmp_path / "amazon"), "Computers")[0]
        same(load_graph("computers", tmp_path), computers)
        same(raw_reddit(tmp_path), Reddit(str(tmp_path / "reddit"))[0])


def raw_reddit(root):
    return load_graph("reddit", root)


def test_a_copy_is_of_no_use_once_a_raw_file_has_changed(tmp_path):
    raw = tmp_path / "reddit" / "raw"
    write_reddit(raw)
    first = load_graph("reddit", tmp_path)
    copy = tmp_path / "reddit" / "processed" / "sgquant.safetensors"
    assert copy.exists()
    assert list(copy.parent.iterdir()) == [copy]
    with np.load(raw / "reddit_data.npz") as arrays:
        changed = {**arrays, "label": 3 - arrays["label"]}
    np.savez(raw / "reddit_data.npz", **changed)
    assert torch.equal(load_graph("reddit", tmp_path).y, 3 - first.y)
    copy.write_bytes(b"damaged")
    assert torch.equal(load_graph("reddit", tmp_path).y, 3 - first.y)


def test_a_folder_without_room_for_a_copy_is_no_error(tmp_path, monkeypatch):
    write_reddit(tmp_path / "reddit" / "raw")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(raw_files.safetensors.torch, "save_file", full)
    assert load_graph("reddit", tmp_path).num_nodes == 40
    assert list((tmp_path / "reddit" / "processed").iterdir()) == []


def test_ogbn_arxiv_is_read_from_its_tables(tmp_path):
    folder = tmp_path / "ogb" / "ogbn_arxiv"
    tables = {
        "raw/node-feat": "0.5,1.0\n-1.5,0.0\n2.0,1.0\n",
        "raw/edge": "0,1\n2,1\n",
        "raw/node-label": "1\n0\n1\n",
        "split/time/train": "0\n",
        "split/time/valid": "1\n",
        "split/time/test": "2\n",
    }
    for name, text in tables.items():
        path = folder / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()))
    data = load_graph("ogbn-arxiv", tmp_path)
    assert data.x.tolist() == [[0.5, 1.0], [-1.5, 0.0], [2.0, 1.0]]
    assert data.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert data.y.tolist() == [1, 0, 1]
    assert data.val_mask.tolist() == [False, True, False]
