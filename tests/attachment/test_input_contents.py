import pytest
import torch

from sgquant_optuna.attachment.input_contents import input_contents
from sgquant_optuna.graph.sparse_features import SparseFeatures
from sgquant_optuna.quantization.input_stores import InputContent
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.quantizers import FeatureQuantizer

BINARY = torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


def contents(x, bucket=None, config=None, num_buckets=2):
    quantizer = FeatureQuantizer("conv1/embedding", config or QuantizerConfig())
    quantizer.calibrate(x, (1, 2, 8), bucket=bucket, num_buckets=num_buckets)
    found = input_contents(quantizer, x, bucket)
    assert quantizer.is_identity
    return found


@pytest.mark.parametrize("make", [lambda x: x, SparseFeatures.from_dense])
def test_binary_features_are_lossless_at_every_width(make):
    assert contents(make(BINARY)) == {0: InputContent(4, 2, 1, True, (1, 2, 8), "own")}


@pytest.mark.parametrize("make", [lambda x: x, SparseFeatures.from_dense])
@pytest.mark.parametrize(("axis", "lossless"), [("tensor", ()), ("row", (1, 2, 8))])
def test_binary_rows_divided_by_their_sums_have_values_of_their_counts(make, axis, lossless):
    x = BINARY / BINARY.sum(dim=1, keepdim=True)
    found = contents(make(x), config=QuantizerConfig(axis=axis, range_estimator="minmax"))
    assert found == {0: InputContent(4, 2, 2, True, lossless, "1/count")}


def test_each_bucket_is_looked_at_by_itself():
    x = torch.tensor([[0.0, 1.0], [0.3, 0.5], [0.0, 0.0]])
    found = contents(x, torch.tensor([0, 1, 0]), QuantizerConfig(range_estimator="minmax"))
    assert found[0] == InputContent(1, 1, 1, True, (1, 2, 8), "1/count")
    assert found[1] == InputContent(2, 2, 2, True, ())


def test_the_paper_s_floor_never_reaches_the_largest_value():
    found = contents(BINARY, config=QuantizerConfig.paper())
    assert found[0].lossless == ()
    assert found[0].keeps_zero


def test_zero_inside_a_range_is_not_kept():
    x = torch.tensor([[-1.0, 0.0], [0.25, 2.0]])
    found = contents(x, config=QuantizerConfig(range_estimator="minmax"))
    assert not found[0].keeps_zero


def test_many_values_have_no_codebook():
    assert contents(torch.arange(600.0).view(20, 30))[0].num_values is None
    assert contents((torch.arange(600.0) % 257).view(20, 30))[0].num_values == 256


def test_widths_can_be_lossless_where_the_values_are_few_in_each_row_alone():
    x = torch.eye(300) * torch.arange(1.0, 301)[:, None]
    found = contents(x, config=QuantizerConfig(axis="row", range_estimator="minmax"))
    assert found == {0: InputContent(300, 1, None, True, (1, 2, 8), "own")}
