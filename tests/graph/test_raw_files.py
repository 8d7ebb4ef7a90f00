"""Published files are read as PyG reads them, and run no code."""

import gzip
import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch_geometric.datasets import Amazon, Planetoid, Reddit

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph import raw_arrays, raw_files
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
    with pytest.raises(GraphError, match="computers.npz: .*array labels: expected numbers, got"):
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
    with pytest.raises(GraphError, match=f"ind.cora.{part}: expected a pickle of (arrays|neighb)"):
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


def crafted(**changes):
    """Three rows of four features, with arrays that SciPy would not make."""
    matrix = sp.csr_matrix(np.eye(3, 4, dtype=np.float32))
    for name, value in changes.items():
        setattr(matrix, name, value)
    return matrix


def int32(*values):
    return np.array(values, dtype=np.int32)


OUT_OF_RANGE = {
    "a column that is not there": ({"indices": int32(0, 1, 4)}, "expected 0 to 3, got 0 to 4"),
    "a column far away": ({"indices": int32(0, 1, 2**31 - 1)}, "expected 0 to 3, got"),
    "a negative column": ({"indices": int32(0, -1, 2)}, "expected 0 to 3, got -1 to 2"),
    "rows that go back": ({"indptr": int32(0, 3, 1, 3)}, "expected places in rising order"),
    "rows past the end": ({"indptr": int32(0, 1, 2, 9)}, "from 0 to 3, got 0 to 9"),
    "a first row elsewhere": ({"indptr": int32(-5, 1, 2, 3)}, "from 0 to 3, got -5 to 3"),
    "too few rows": ({"indptr": int32(0, 3)}, r"expected whole numbers \[4\], got int32 \[2\]"),
    "too few values": ({"data": np.ones(2, np.float32)}, r"expected numbers \[3\], got float32"),
    "columns that are no integers": ({"indices": np.ones(3)}, "expected whole numbers"),
    "values that are a table": ({"data": np.ones((3, 1))}, r"got float64 \[3, 1\]"),
    "a negative shape": ({"_shape": (3, -4)}, "shape of a matrix: expected two whole numbers"),
    "a shape without end": ({"_shape": (3, 2**60)}, "shape of a matrix: expected two whole"),
    "a large shape": ({"_shape": (3, 2**31 - 1)}, "expected at most 1,073,741,824 values"),
}


@pytest.mark.parametrize(("changes", "message"), OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
def test_a_pickled_matrix_that_leads_outside_is_named(changes, message, tmp_path):
    raw = tmp_path / PLANETOID
    write_planetoid(raw)
    (raw / "ind.cora.tx").write_bytes(pickle.dumps(crafted(**changes), protocol=4))
    with pytest.raises(GraphError, match=rf"ind.cora.tx: expected .*{message}.*; remove it"):
        load_graph("cora", tmp_path)


@pytest.mark.parametrize("kind", ["attr", "adj"])
@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("indices", lambda a: np.where(np.arange(len(a)) == 7, 2**31 - 1, a), "expected 0 to"),
        ("indices", lambda a: -a - 1, "expected 0 to"),
        ("indptr", lambda a: a[::-1].copy(), "expected places from 0"),
        ("indptr", lambda a: np.r_[a[:1], a[-1:], a[2:]], "in rising order"),
        ("data", lambda a: a[:-1], r"expected numbers \["),
        ("shape", lambda a: a * 2**40, "expected two whole numbers below"),
        ("shape", lambda a: a + 1, "expected"),
    ],
)
def test_a_matrix_of_an_archive_that_leads_outside_is_named(kind, part, change, message, tmp_path):
    raw = tmp_path / "amazon" / "Computers" / "raw"
    write_amazon(raw)
    file = raw / "amazon_electronics_computers.npz"
    with np.load(file) as arrays:
        changed = {**arrays, f"{kind}_{part}": change(arrays[f"{kind}_{part}"])}
    np.savez(file, **changed)
    with pytest.raises(GraphError, match=f"computers.npz: expected .*{message}"):
        load_graph("computers", tmp_path)


@pytest.mark.parametrize("shape", [(2**60,), (2**31, 2**31), (5,), (-1,)])
def test_a_header_that_claims_more_than_there_is_takes_no_memory(shape, tmp_path):
    raw = tmp_path / "amazon" / "Computers" / "raw"
    write_amazon(raw)
    file = raw / "amazon_electronics_computers.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<i8", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(file, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the archive has an array of this name
        archive.writestr("labels.npy", header.getvalue())
    with pytest.raises(GraphError, match="array labels: expected (at most|as many bytes)"):
        load_graph("computers", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "write"),
    [
        ("cora", f"{PLANETOID}/ind.cora.allx", write_planetoid),
        ("cora", f"{PLANETOID}/ind.cora.test.index", write_planetoid),
        ("reddit", "reddit/raw/reddit_graph.npz", write_reddit),
    ],
)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_is_refused_at_once(name, file, write, make, tmp_path):
    write((tmp_path / file).parent)
    (tmp_path / file).unlink()
    make(tmp_path / file)
    with pytest.raises(GraphError, match="it is no regular file but a folder, a pipe or"):
        load_graph(name, tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("508\n" * 12, "expected each once, from 508 on"),
        ("-1\n" + "509\n" * 11, "expected each once, from 508 on"),
        (f"508\n{2**40}\n", "expected at most 1,073,741,824 values"),
        ("508\n509\n", "nodes with rows in tx: expected 12, got 2"),
        ("", "no data"),
        ("508 509\n", "ValueError|could not convert"),
        ("5" * 70_000, "in a line"),
    ],
)
def test_test_nodes_that_cannot_be_are_named(lines, message, tmp_path):
    raw = tmp_path / PLANETOID
    write_planetoid(raw)
    (raw / "ind.cora.test.index").write_text(lines)
    with pytest.raises(GraphError, match=f"ind.cora.test.index: expected .*({message})"):
        load_graph("cora", tmp_path)


def test_neighbours_that_are_no_nodes_are_named(tmp_path):
    raw = tmp_path / PLANETOID
    write_planetoid(raw)
    shared = list(range(500))
    for graph, message in (
        ({0: [520]}, "expected nodes from 0 to 519"),
        ({-1: [0]}, "expected nodes from 0 to 519"),
        ({0: [1.0]}, "BINFLOAT, which no array needs"),
        ({0: ["1"]}, "expected nodes from 0 to 519"),
        ({0: [[1]]}, "expected nodes from 0 to 519"),
        ({0: 1}, "expected a list for each node"),
        ([0], "expected a list for each node"),
        (dict.fromkeys(range(500), shared), "expected fewer edges than bytes"),
    ):
        (raw / "ind.cora.graph").write_bytes(pickle.dumps(graph, protocol=4))
        with pytest.raises(GraphError, match=f"ind.cora.graph: .*{message}"):
            load_graph("cora", tmp_path)


def test_a_copy_that_is_no_graph_is_read_anew(tmp_path):
    write_reddit(tmp_path / "reddit" / "raw")
    first = load_graph("reddit", tmp_path)
    copy = tmp_path / "reddit" / "processed" / "sgquant.safetensors"
    with raw_files.safetensors.safe_open(copy, "pt") as file:
        known = file.metadata()
        columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for change in (
        {"edge_index": columns["edge_index"] + 39},
        {"y": columns["y"][:-1]},
        {"x": columns["x"] / 0},
        {"val_mask": columns["val_mask"].long()},
    ):
        raw_files.safetensors.torch.save_file({**columns, **change}, copy, known)
        same(load_graph("reddit", tmp_path), first)


def test_a_killed_writer_of_a_copy_leaves_nothing_for_long(tmp_path):
    write_reddit(tmp_path / "reddit" / "raw")
    processed = tmp_path / "reddit" / "processed"
    (processed / "sgquant.safetensors.part").mkdir(parents=True)
    (processed / "sgquant.safetensors.part" / ".tmpX").write_bytes(b"half a copy")
    load_graph("reddit", tmp_path)
    assert [path.name for path in processed.iterdir()] == ["sgquant.safetensors"]


def test_an_error_quotes_no_whole_file():
    assert len(raw_arrays.brief(ValueError("x" * 10**6))) <= 200
