import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch_geometric.data import Data

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph import datasets
from sgquant_optuna.graph.datasets import load_graph, random_split
from sgquant_optuna.graph.training import NODE_CLASSIFICATION


def write_planetoid(folder: Path, name: str = "cora") -> None:
    """Write 520 nodes in the format of the published files: 6 training, 500 validation nodes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    num_train, num_known, num_nodes = 6, 508, 520
    x = sp.csr_matrix((rng.random((num_nodes, 5)) < 0.4).astype(np.float32))
    y = np.eye(3, dtype=np.int32)[np.arange(num_nodes) % 3]
    parts = {
        "x": x[:num_train],
        "y": y[:num_train],
        "allx": x[:num_known],
        "ally": y[:num_known],
        "tx": x[num_known:],
        "ty": y[num_known:],
        "graph": {node: [(node + 1) % num_nodes] for node in range(num_nodes)},
    }
    for part, value in parts.items():
        (folder / f"ind.{name}.{part}").write_bytes(pickle.dumps(value, protocol=4))
    lines = "\n".join(str(node) for node in range(num_known, num_nodes))
    (folder / f"ind.{name}.test.index").write_text(lines + "\n")


def write_amazon(folder: Path) -> None:
    folder.mkdir(parents=True)
    x = sp.csr_matrix(np.eye(120, 4, dtype=np.float32) + 1)
    ring = sp.csr_matrix(
        (np.ones(120, np.float32), (np.arange(120), (np.arange(120) + 1) % 120)), (120, 120)
    )
    np.savez_compressed(
        folder / "amazon_electronics_computers.npz",
        adj_data=ring.data,
        adj_indices=ring.indices,
        adj_indptr=ring.indptr,
        adj_shape=ring.shape,
        attr_data=x.data,
        attr_indices=x.indices,
        attr_indptr=x.indptr,
        attr_shape=x.shape,
        labels=np.arange(120) % 2,
    )


def test_digits_need_no_files_and_are_the_same_every_time():
    data = load_graph("digits")
    NODE_CLASSIFICATION.check(data)
    assert (data.num_nodes, data.num_features, int(data.y.max())) == (1797, 64, 9)
    assert (float(data.x.min()), float(data.x.max())) == (0, 1)
    assert data.is_undirected() and not data.has_self_loops() and data.is_coalesced()
    assert (int(data.train_mask.sum()), int(data.val_mask.sum())) == (200, 300)
    assert (data.name, data.split_seed) == ("digits", 0)
    again = load_graph("DIGITS")
    assert again.edge_index.equal(data.edge_index) and again.train_mask.equal(data.train_mask)
    assert not load_graph("digits", seed=1).train_mask.equal(data.train_mask)


def test_raw_planetoid_files_are_read_with_the_public_split(tmp_path, monkeypatch):
    write_planetoid(tmp_path / "planetoid" / "Cora" / "raw")
    data = load_graph("cora", tmp_path)
    NODE_CLASSIFICATION.check(data)
    assert (data.num_nodes, data.num_features, data.name) == (520, 5, "Cora")
    assert int(data.train_mask.sum()) == 6
    assert int(data.val_mask.sum()) == 500
    assert data.test_mask.nonzero().flatten().tolist() == list(range(508, 520))
    assert "split_seed" not in data
    monkeypatch.setenv("SGQUANT_DATA", str(tmp_path))
    assert load_graph("Cora").x.equal(data.x)


def test_rows_of_negative_features_have_no_sum_to_divide_by(monkeypatch):
    digits = datasets._digits()
    digits.x[0, 0] = -0.5
    monkeypatch.setattr(datasets, "_digits", lambda: digits)
    with pytest.raises(GraphError, match="graph digits: expected features >= 0.*got -0.5; take"):
        load_graph("digits", normalize_features=True)


def test_raw_amazon_files_are_read_and_split(tmp_path):
    write_amazon(tmp_path / "amazon" / "Computers" / "raw")
    data = load_graph("computers", tmp_path, seed=3)
    NODE_CLASSIFICATION.check(data)
    assert (data.num_nodes, data.split_seed) == (120, 3)
    assert (int(data.train_mask.sum()), int(data.val_mask.sum())) == (40, 60)


@pytest.mark.parametrize(
    ("name", "file", "folder"),
    [
        ("PubMed", "ind.pubmed.x", "planetoid/PubMed/raw"),
        ("Photo", "amazon_electronics_photo.npz", "amazon/Photo/raw"),
        ("CS", "ms_academic_cs.npz", "coauthor/CS/raw"),
        ("Reddit", "reddit_data.npz", "reddit/raw"),
        ("ogbn-arxiv", "edge.csv.gz", "ogb/ogbn_arxiv/raw"),
    ],
)
def test_a_failed_download_names_the_file_and_its_folder(
    name, file, folder, tmp_path, monkeypatch
):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr("torch_geometric.io.fs.cp", no_network)
    with pytest.raises(GraphError) as error:
        load_graph(name, tmp_path)
    assert f"cannot download {file} (OSError: no network)" in str(error.value)
    assert f"put it into {tmp_path / folder}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_told_and_kept(tmp_path):
    raw = tmp_path / "planetoid" / "Cora" / "raw"
    write_planetoid(raw)
    (raw / "ind.cora.allx").write_bytes(b"not a pickle")
    with pytest.raises(
        GraphError, match="ind.cora.allx: expected a pickle of arrays .*remove it and load again"
    ):
        load_graph("cora", tmp_path)
    assert (raw / "ind.cora.allx").read_bytes() == b"not a pickle"


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(GraphError, match=r"expected one of digits, Cora, .* did you mean Cora\?"):
        load_graph("coraa")
    with pytest.raises(GraphError, match="got 'nothing like it'"):
        load_graph("nothing like it")


def test_a_split_takes_so_many_nodes_of_each_class(graph):
    split = random_split(graph, num_train_per_class=4, num_val_per_class=5, seed=1)
    for label in range(3):
        of_class = split.y == label
        assert int((split.train_mask & of_class).sum()) == 4
        assert int((split.val_mask & of_class).sum()) == 5
        assert int((split.test_mask & of_class).sum()) == 11
    NODE_CLASSIFICATION.check(split)
    with pytest.raises(GraphError, match="expected more than 50 nodes of class 0, got 20"):
        random_split(graph)


def break_graph(**changes):
    def change(graph: Data) -> None:
        for name, value in changes.items():
            if value is None:
                del graph[name]
            else:
                graph[name] = value

    return change


EMPTY = torch.zeros(60, dtype=torch.bool)
FULL = torch.ones(60, dtype=torch.bool)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_graph(x=None), "column x: expected one, the graph has"),
        (break_graph(y=None), "column y: expected one"),
        (break_graph(edge_index=None), "column edge_index: expected one"),
        (break_graph(train_mask=None), r"column train_mask: .*random_split\(\) makes masks"),
        (break_graph(x=torch.zeros(60)), r"column x: expected float features \[N, F\], got float"),
        (break_graph(x=torch.zeros(60, 2).long()), "column x: expected float features"),
        (break_graph(x=torch.full((60, 2), torch.nan)), "column x: expected finite numbers"),
        (break_graph(edge_index=torch.zeros(3, 4).long()), r"expected int64 \[2, E\]"),
        (break_graph(edge_index=torch.tensor([[0], [60]])), "expected nodes from 0 to 59, got"),
        (break_graph(y=torch.zeros(59).long()), r"column y: expected int64 \[60\], got int64"),
        (break_graph(y=torch.zeros(60)), r"column y: expected int64 \[60\], got float32"),
        (break_graph(y=torch.full((60,), -1)), "column y: expected a class for each node of"),
        (break_graph(train_mask=EMPTY), "column train_mask: expected at least one node, got none"),
        (break_graph(val_mask=EMPTY), "column val_mask: expected at least one node, got none"),
        (break_graph(val_mask=FULL.long()), r"column val_mask: expected bool \[60\], got int64"),
        (break_graph(val_mask=FULL), "column train_mask: expected no node of val_mask, got 20"),
        (break_graph(test_mask=FULL), "column train_mask: expected no node of test_mask"),
    ],
)
def test_a_graph_that_cannot_be_searched_is_refused_in_one_line(change, message, graph):
    change(graph)
    with pytest.raises(GraphError, match=message) as error:
        NODE_CLASSIFICATION.check(graph)
    assert "\n" not in str(error.value)


def test_a_test_mask_is_not_needed(graph):
    del graph.test_mask
    NODE_CLASSIFICATION.check(graph)


REAL = {
    "Cora": ("planetoid/Cora/raw", 2708, 10556, 1433, 140),
    "CiteSeer": ("planetoid/CiteSeer/raw", 3327, 9104, 3703, 120),
    "PubMed": ("planetoid/PubMed/raw", 19717, 88648, 500, 60),
    "Computers": ("amazon/Computers/raw", 13752, 491722, 767, 200),
}


@pytest.mark.parametrize("name", REAL)
def test_real_data_sets_have_their_published_sizes_and_equal_those_of_pyg(
    name, real_data, tmp_path
):
    raw, nodes, edges, features, train = REAL[name]
    # Both keep files beside the raw ones, and the user's folder is not theirs.
    (tmp_path / raw).parent.mkdir(parents=True)
    if not (real_data / raw).is_dir():
        pytest.skip(f"needs {real_data / raw}")
    (tmp_path / raw).symlink_to(real_data / raw)
    data = load_graph(name, tmp_path)
    NODE_CLASSIFICATION.check(data)
    assert (data.num_nodes, data.num_edges, data.num_features) == (nodes, edges, features)
    assert int(data.train_mask.sum()) == train
    kind, folder, part = datasets._DATASETS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names of old SciPy in the published pickles
        expected = kind(str(tmp_path / folder), part)[0]
    for column in ("x", "edge_index", "y"):
        assert torch.equal(data[column], expected[column])
    if "train_mask" in expected:
        for mask in ("train_mask", "val_mask", "test_mask"):
            assert torch.equal(data[mask], expected[mask])
