import pytest
import torch
from torch.utils.data import DataLoader
from torch_geometric.data import Data
from torch_geometric.loader import RandomNodeLoader
from torch_geometric.nn import GCNConv
from torch_geometric.utils import k_hop_subgraph

from sgquant_optuna.packed.feature_store import PackedFeatureStore
from sgquant_optuna.packed.packed_features import PackedFeatures
from sgquant_optuna.packed.packed_tensor import PackedTensor
from tests.packed.test_packed_features import make


@pytest.mark.parametrize(
    "index", [None, torch.tensor([3, 1, 3]), slice(2, 5), torch.tensor([True, False] * 5)]
)
def test_a_store_reads_the_sampled_rows_of_a_mapped_file(tmp_path, index):
    packed, expected, _ = make(10, 6, [4, 1])
    packed.save(tmp_path / "x")
    store = PackedFeatureStore(PackedFeatures.open(tmp_path / "x"))
    read = store.get_tensor(group_name=None, attr_name="x", index=index)
    assert torch.equal(read, expected if index is None else expected[index])
    assert store.get_tensor_size(group_name=None, attr_name="x") == (10, 6)


def test_a_store_knows_one_attribute_only():
    store = PackedFeatureStore(make(4, 3, [2])[0])
    assert [attr.attr_name for attr in store.get_all_tensor_attrs()] == ["x"]
    with pytest.raises(KeyError):
        store.get_tensor(group_name=None, attr_name="y", index=None)


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    """Features of 40 nodes in a mapped file, what they equal, and the rows that were unpacked."""
    packed, expected, _ = make(40, 6, [4, 1, 32])
    packed.save(tmp_path / "x")
    features = PackedFeatures.open(tmp_path / "x")
    unpacked = []
    rows = PackedFeatures.rows

    def seen(self, index):
        unpacked.append(len(index))
        return rows(self, index)

    monkeypatch.setattr(PackedFeatures, "rows", seen)
    return features, expected, unpacked


EDGES = torch.stack([torch.arange(40), (torch.arange(40) + 1) % 40])


def test_a_data_set_of_packed_features_is_sampled_by_the_loaders_of_pyg(mapped):
    features, expected, unpacked = mapped
    data = Data(x=PackedTensor(features), edge_index=EDGES, node=torch.arange(40))
    loader = RandomNodeLoader(data, num_parts=4)
    nodes = []
    for batch in loader:
        assert torch.equal(batch.x, expected[batch.node])
        nodes += batch.node.tolist()
    assert sorted(nodes) == list(range(40))
    assert max(unpacked) <= 12


def test_neighbourhoods_read_their_rows_from_the_store(mapped):
    features, expected, unpacked = mapped
    store, conv = PackedFeatureStore(features), GCNConv(6, 3)
    whole = conv(expected, EDGES)
    for seeds in DataLoader(torch.arange(40), batch_size=8):
        nodes, edges, place, _ = k_hop_subgraph(seeds, 2, EDGES, relabel_nodes=True)
        x = store.get_tensor(group_name=None, attr_name="x", index=nodes)
        torch.testing.assert_close(conv(x, edges)[place], whole[seeds])
    assert max(unpacked) == 10  # eight nodes in a row, and two before them


@pytest.mark.parametrize(
    "index", [slice(3, 9), torch.tensor([5, 5, 0]), torch.arange(40) % 3 == 0]
)
def test_selecting_rows_unpacks_them_alone(mapped, index):
    features, expected, unpacked = mapped
    x = PackedTensor(features)
    assert torch.equal(x[index], expected[index])
    assert unpacked == [len(expected[index])]
    assert torch.equal(x.index_select(0, torch.tensor([7])), expected[7:8])
    assert torch.equal(x[3, 2], expected[3, 2])
