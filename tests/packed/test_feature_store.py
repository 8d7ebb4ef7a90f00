import pytest
import torch

from sgquant_optuna.packed.feature_store import PackedFeatureStore
from sgquant_optuna.packed.features import PackedFeatures
from tests.packed.test_features import make


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
