"""The same numbers on a GPU as on the CPU; on a machine without one, the CPU checks the test."""

import pytest
import torch
from torch.nn import functional as F

from sgquant_optuna.exceptions import GraphError, ModelError
from sgquant_optuna.packed.export import export_packed, load_packed
from sgquant_optuna.packed.feature_store import PackedFeatureStore
from sgquant_optuna.packed.operations import aggregate, linear
from sgquant_optuna.packed.packed_features import PackedFeatures
from sgquant_optuna.packed.packed_tensor import PackedTensor
from sgquant_optuna.quantization.affine import affine_parameters
from tests.conftest import make_graph
from tests.packed.test_operations import random_graph
from tests.packed.test_packed_features import make
from tests.packed.test_packed_model import assert_same, quantized

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_GPU)]
INDEX = torch.tensor([5, 0, 39, 5])
TOLERANCE = {"rtol": 1e-5, "atol": 1e-4}


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(params=["bucket", "column", "row"])
def features(request, device):
    packed, dense, _ = make(40, 20, [8, 3, 32, 16], request.param)
    return packed.to(device), dense.to(device)


def test_rows_come_back_the_same(features):
    packed, dense = features
    assert torch.equal(packed.to_dense(), dense)
    for index in (INDEX, INDEX.to(dense.device)):
        assert torch.equal(packed.rows(index), dense[index])
    assert torch.equal(packed.to("cpu").to_dense(), dense.cpu())


def test_features_are_packed_to_the_same_bytes(device):
    x, bucket = torch.randn(40, 20), torch.arange(40) % 3
    ends = torch.full((3, 1), 2.0)
    ranges = affine_parameters(-ends, ends, torch.tensor([[8], [3], [16]]))
    parts = [part.to(device) for part in ranges]
    found = PackedFeatures.from_dense(x.to(device), bucket.to(device), [8, 3, 32], *parts)
    expected = PackedFeatures.from_dense(x, bucket, [8, 3, 32], *ranges, fast=False)
    assert found.device.type == device
    assert torch.equal(found.data.cpu(), expected.data)


def test_products_are_the_same(features):
    packed, dense = features
    weight = torch.randn(7, 20, device=dense.device)
    expected = F.linear(dense, weight)
    torch.testing.assert_close(linear(packed, weight), expected, **TOLERANCE)
    torch.testing.assert_close(F.linear(PackedTensor(packed), weight), expected, **TOLERANCE)
    crow, col, value = (part.to(dense.device) for part in random_graph(30, 40))
    matrix = torch.sparse_csr_tensor(crow, col, value, (30, 40), check_invariants=False)
    torch.testing.assert_close(aggregate(crow, col, value, packed), matrix @ dense, **TOLERANCE)
    torch.testing.assert_close(matrix @ PackedTensor(packed), matrix @ dense, **TOLERANCE)


def test_a_packed_tensor_selects_and_moves(features):
    packed, dense = features
    x = PackedTensor(packed)
    assert x.device == dense.device
    for index in (INDEX, INDEX.to(dense.device), 5, [1, 2], slice(3, 9), torch.arange(40) > 30):
        assert torch.equal(x[index], dense[index])
    assert torch.equal(x.dense(), dense)
    moved = x.cpu().to(dense.device)
    assert isinstance(moved, PackedTensor) and torch.equal(moved.dense(), dense)
    store = PackedFeatureStore(packed)
    for index in (INDEX, slice(3, 9), None):
        found = store.get_tensor(group_name=None, attr_name="x", index=index)
        assert torch.equal(found, dense if index is None else dense[index])


@pytest.mark.parametrize(
    "move",
    [lambda m: m.to("meta"), lambda m: m.half(), lambda m: m.double()],
    ids=["meta", "half", "double"],
)
def test_a_packed_model_says_that_it_stays_on_the_cpu(move, tmp_path):
    model, data, layout, scores, _ = quantized("gcn", make_graph())
    export_packed(model, data, tmp_path / "m", layout=layout)
    packed = load_packed(tmp_path / "m")
    with pytest.raises(ModelError, match="runs on the CPU in float32"):
        move(packed)
    assert_same(packed.to("cpu").float()(data), scores)
    with pytest.raises(GraphError, match=r"call it with data\.cpu"):
        packed(data.edge_index.to("meta"))
