import pytest
import torch
from torch.utils.data import DataLoader
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import NodeLoader, RandomNodeLoader
from torch_geometric.nn import GCNConv
from torch_geometric.sampler import BaseSampler, HeteroSamplerOutput, SamplerOutput
from torch_geometric.utils import k_hop_subgraph

from sgquant_optuna.packed.feature_packing import pack_features
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


def test_columns_that_are_not_packed_lie_beside_them():
    packed, expected, _ = make(10, 6, [4])
    store, y = PackedFeatureStore(packed), torch.arange(10)
    assert store.put_tensor(y, group_name=None, attr_name="y", index=None)
    assert [attr.attr_name for attr in store.get_all_tensor_attrs()] == ["x", "y"]
    attrs = store.get_all_tensor_attrs()
    for attr in attrs:
        attr.index = torch.tensor([7, 2])
    x, labels = store.multi_get_tensor(attrs)
    assert torch.equal(x, expected[[7, 2]]) and labels.tolist() == [7, 2]
    assert all(not attr.is_set("index") for attr in store.get_all_tensor_attrs())
    assert store.remove_tensor(group_name=None, attr_name="y", index=None)
    assert not store.remove_tensor(group_name=None, attr_name="y", index=None)


def test_packed_features_are_read_only():
    store = PackedFeatureStore(make(10, 6, [4])[0])
    assert not store.put_tensor(torch.zeros(10, 6), group_name=None, attr_name="x", index=None)
    assert not store.remove_tensor(group_name=None, attr_name="x", index=None)
    with pytest.raises(IndexError, match="feature store: expected numbers of rows, got 'all'"):
        store.get_tensor(group_name=None, attr_name="x", index="all")


def typed_store(folder):
    """Papers of 4 bits in a file, authors of 8 bits, and what both equal."""
    papers, authors = torch.randn(30, 5), torch.randn(12, 3)
    features = {
        "paper": pack_features(papers, folder / "paper.sgq", 4),
        "author": pack_features(authors, folder / "author.sgq", 8),
    }
    store = PackedFeatureStore(features)
    store["paper", "y", None] = torch.arange(30)
    return store, {name: rows.to_dense() for name, rows in features.items()}


def test_each_node_type_has_its_features(tmp_path):
    store, expected = typed_store(tmp_path)
    assert store.get_tensor_size(group_name="author", attr_name="x") == (12, 3)
    index = torch.tensor([3, 11])
    assert torch.equal(store["author", "x", index], expected["author"][index])
    assert torch.equal(store["paper"].x[index], expected["paper"][index])
    assert torch.equal(store["paper", "x", None], expected["paper"])
    with pytest.raises(KeyError, match="holds 'x' of 'paper', 'x' of 'author', 'y' of 'paper'"):
        store.get_tensor(group_name="venue", attr_name="x", index=None)
    with pytest.raises(ValueError, match="group name: expected none for features by node type"):
        PackedFeatureStore({"paper": make(4, 3, [2])[0]}, group_name="paper")


class Ring(BaseSampler):
    """Each seed with its successor on a ring of 40 nodes."""

    def sample_from_nodes(self, index):
        seeds, count = index.node, len(index.node)
        nodes = torch.cat([seeds, (seeds + 1) % 40])
        ends = torch.arange(count, 2 * count), torch.arange(count)
        return SamplerOutput(nodes, *ends, None, metadata=(index.input_id, index.time))

    def sample_from_edges(self, index, neg_sampling=None):
        raise NotImplementedError


class Authors(BaseSampler):
    """Each paper with the author of its number modulo 12."""

    def sample_from_nodes(self, index):
        relation, order = ("author", "writes", "paper"), torch.arange(len(index.node))
        nodes = {"paper": index.node, "author": index.node % 12}
        ends = {relation: order}, {relation: order}
        return HeteroSamplerOutput(nodes, *ends, None, metadata=(index.input_id, index.time))

    def sample_from_edges(self, index, neg_sampling=None):
        raise NotImplementedError


WORKERS = {"num_workers": 2, "multiprocessing_context": "spawn"}


@pytest.mark.parametrize("workers", [{}, WORKERS], ids=["here", "spawned"])
def test_a_loader_with_a_sampler_of_ones_own_reads_a_mapped_file(tmp_path, workers):
    packed = pack_features(torch.randn(40, 6), tmp_path / "x.sgq", 4)
    store, expected = PackedFeatureStore(packed), packed.to_dense()
    store[None, "y", None] = torch.arange(40)
    graph = Data(edge_index=EDGES, num_nodes=40)
    seen = []
    for batch in NodeLoader((store, graph), Ring(), torch.arange(40), batch_size=16, **workers):
        assert torch.equal(batch.x, expected[batch.n_id]) and torch.equal(batch.y, batch.n_id)
        seen += batch.n_id[: batch.batch_size].tolist()
    assert seen == list(range(40))


def test_a_loader_reads_the_features_of_each_node_type(tmp_path):
    store, expected = typed_store(tmp_path)
    graph = HeteroData()
    graph["author", "writes", "paper"].edge_index = torch.stack(
        [torch.arange(30) % 12, torch.arange(30)]
    )
    seen = []
    for batch in NodeLoader((store, graph), Authors(), "paper", batch_size=8):
        for name, whole in expected.items():
            assert torch.equal(batch[name].x, whole[batch[name].n_id])
        seen += batch["paper"].y.tolist()
    assert seen == list(range(30))
