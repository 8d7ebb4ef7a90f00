import copy
import pickle

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed import packed_tensor
from sgquant_optuna.packed.feature_store import PackedFeatureStore
from sgquant_optuna.packed.packed_features import PackedFeatures
from sgquant_optuna.packed.packed_tensor import PackedTensor
from tests.packed.allocations import LargestOutput
from tests.packed.test_packed_features import make

NUM_NODES, NUM_COLUMNS = 40, 6
MASK = [node % 3 == 0 for node in range(NUM_NODES)]
INDICES = {
    "number": 5,
    "number from the end": -1,
    "numpy number": np.int64(5),
    "list": [1, 2, 3],
    "list with repeats and from the end": [3, 3, -2],
    "empty list": [],
    "range": range(2, 6),
    "array": np.array([4, 0]),
    "array of two dimensions": np.array([[4, 0], [1, 1]]),
    "int32": torch.tensor([7, 9], dtype=torch.int32),
    "no dimension": torch.tensor(7),
    "list of truth": MASK,
    "array of truth": np.array(MASK),
    "tensor of truth": torch.tensor(MASK),
    "slice": slice(3, 30, 4),
    "slice from the end": slice(-3, None),
    "row and column": (3, 2),
    "rows and columns": ([1, 2, 3], [0, 5, 1]),
    "rows and a slice": ([1, 2], slice(1, 3)),
    "slice and a column": (slice(2, 5), 4),
    "truth and a column": (torch.tensor(MASK), 1),
}


@pytest.fixture
def packed():
    return make(NUM_NODES, NUM_COLUMNS, [4, 1, 32])[:2]


@pytest.fixture
def never_whole(monkeypatch):
    def dense(self):
        raise AssertionError("all rows were unpacked")

    monkeypatch.setattr(PackedTensor, "dense", dense)


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_an_index_unpacks_its_rows_alone(index, packed, never_whole):
    features, expected = packed
    found = PackedTensor(features)[index]
    wanted = expected[list(index) if isinstance(index, range) else index]
    assert type(found) is torch.Tensor
    assert torch.equal(found, wanted)


def test_index_select_unpacks_its_rows_alone(packed, never_whole):
    features, expected = packed
    x, rows = PackedTensor(features), torch.tensor([7, 7, 1])
    for found in (
        x.index_select(0, rows),
        x.index_select(index=rows, dim=0),
        torch.index_select(x, -2, rows),
    ):
        assert torch.equal(found, expected[rows])


@pytest.mark.parametrize("index", [None, ..., torch.rand(NUM_NODES, NUM_COLUMNS) > 0.5, (..., 2)])
def test_another_index_gives_what_it_gives_of_dense_features(index, packed):
    features, expected = packed
    assert torch.equal(PackedTensor(features)[index], expected[index])
    columns = torch.tensor([4, 0])
    assert torch.equal(PackedTensor(features).index_select(1, columns), expected[:, columns])


@pytest.mark.parametrize("index", [NUM_NODES, -NUM_NODES - 1, [0, NUM_NODES], [True, False]])
def test_rows_that_are_not_there_are_named(index, packed, never_whole):
    with pytest.raises(IndexError, match="expected"):
        PackedTensor(packed[0])[index]
    with pytest.raises(IndexError, match="expected"):
        store = PackedFeatureStore(packed[0])
        store.get_tensor(group_name=None, attr_name="x", index=torch.tensor(index))


COPIES = {
    "clone": torch.clone,
    "detach": torch.Tensor.detach,
    "to": lambda x: x.to("cpu"),
    "to device and type": lambda x: x.to(device="cpu", dtype=torch.float32),
    "cpu": torch.Tensor.cpu,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "data.clone": lambda x: Data(x=x).clone().x,
    "data.to": lambda x: Data(x=x).to("cpu").x,
    "deepcopy of data": lambda x: copy.deepcopy(Data(x=x)).x,
    "pickle of data": lambda x: pickle.loads(pickle.dumps(Data(x=x))).x,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_stay_packed(copied, packed, never_whole):
    features, expected = packed
    found = copied(PackedTensor(features))
    assert isinstance(found, PackedTensor)
    assert torch.equal(found[list(range(NUM_NODES))], expected)


def test_another_type_is_dense(packed):
    features, expected = packed
    assert torch.equal(PackedTensor(features).to(torch.float64), expected.double())
    assert torch.equal(PackedTensor(features).double(), expected.double())


def test_a_mapped_file_is_pickled_by_its_name(packed, tmp_path):
    features, expected = packed
    features.save(tmp_path / "x")
    x = PackedTensor(PackedFeatures.open(tmp_path / "x"))
    pickled = pickle.dumps(x)
    assert len(pickled) < 1000 and str(tmp_path).encode() in pickled
    assert torch.equal(pickle.loads(pickled).dense(), expected)
    make(NUM_NODES, NUM_COLUMNS, [4, 1, 32], seed=1)[0].save(tmp_path / "x")
    with pytest.raises(PackingError, match="the file that was pickled"):
        pickle.loads(pickled)
    (tmp_path / "x").unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickled)


def test_features_in_memory_are_pickled_by_their_bytes_alone(packed):
    features, expected = packed
    much = torch.cat([features.data, torch.zeros(100_000, dtype=torch.uint8)])
    parts = features.bucket, features.bit_widths, features.scale, features.zero_point
    view = PackedFeatures(much[: len(features.data)], *parts, NUM_COLUMNS)
    pickled = pickle.dumps(view)
    assert len(pickled) < 10_000
    assert torch.equal(pickle.loads(pickled).to_dense(), expected)


def test_packed_features_are_not_written_to(packed):
    x = PackedTensor(packed[0])
    for change in (
        lambda: x.add_(1),
        lambda: torch.relu_(x),
        lambda: x.__setitem__(0, 1.0),
    ):
        with pytest.raises(TypeError, match="does not change them"):
            change()
    assert torch.equal(torch.zeros_like(packed[1]).add_(x), packed[1])


def test_dense_operations_see_all_rows(packed):
    features, expected = packed
    x = PackedTensor(features)
    assert torch.equal(x * 2 + x, expected * 2 + expected)
    assert x.shape == expected.shape and x.device == expected.device


def test_a_row_of_many_neighbours_is_added_up_in_parts(monkeypatch):
    packed, dense, _ = make(4000, 16, [8, 3, 32])
    degree = torch.tensor([0, 5, 4000, 0, 30])
    crow = torch.nn.functional.pad(degree.cumsum(0), (1, 0))
    col = torch.cat([torch.arange(5), torch.arange(4000), torch.arange(30)])
    value = torch.rand(len(col), generator=torch.Generator().manual_seed(0))
    matrix = torch.sparse_csr_tensor(crow, col, value, (5, 4000), check_invariants=False)
    monkeypatch.setattr(packed_tensor, "BLOCK_VALUES", 100 * 16)
    x = PackedTensor(packed)
    with LargestOutput() as largest:
        found = matrix @ x
    torch.testing.assert_close(found, matrix @ dense, rtol=1e-5, atol=1e-4)
    assert largest.nbytes <= 8 * len(col)  # its columns; 16 features of each would be 8 times that
