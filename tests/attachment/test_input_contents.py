from dataclasses import replace

import pytest
import torch

from sgquant_optuna.attachment.input_contents import input_contents
from sgquant_optuna.graph.sparse_features import SparseFeatures
from sgquant_optuna.quantization.gap_codes import GapCode
from sgquant_optuna.quantization.input_stores import InputContent, SparseContent
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.quantizers import FeatureQuantizer

BINARY = torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


def contents(x, bucket=None, config=None, num_buckets=2):
    quantizer = FeatureQuantizer("conv1/embedding", config or QuantizerConfig())
    quantizer.calibrate(x, (1, 2, 8), bucket=bucket, num_buckets=num_buckets)
    found = input_contents(quantizer, x, bucket)
    assert quantizer.is_identity
    return found


# Columns 1, 0, 3, 2 in the order of their classes 0, 1, 1, 7: gaps 0; 0 and 0; 2, in 1 + 1 + 1 + 3
# bits.
WORDS = SparseContent(4, 2, 1, 6)
DIVIDED = replace(WORDS, num_values=2)
WIDTHS = (1, 2, 8)


def everywhere(content, *changed):
    return {**dict.fromkeys((32, *WIDTHS), content), **dict(changed)}


@pytest.mark.parametrize("make", [lambda x: x, SparseFeatures.from_dense])
def test_binary_features_are_lossless_at_every_width(make):
    assert contents(make(BINARY)) == {0: InputContent(everywhere(WORDS), WIDTHS, "own")}


@pytest.mark.parametrize("make", [lambda x: x, SparseFeatures.from_dense])
@pytest.mark.parametrize(
    ("axis", "lossless", "changed"),
    # At 1 bit, 0.5 is rounded to 0: what is left are the gaps 0 and 1, in 1 + 2 bits.
    [("tensor", (), [(1, SparseContent(2, 1, 1, 3))]), ("row", WIDTHS, [])],
)
def test_binary_rows_divided_by_their_sums_have_values_of_their_counts(
    make, axis, lossless, changed
):
    x = BINARY / BINARY.sum(dim=1, keepdim=True)
    found = contents(make(x), config=QuantizerConfig(axis=axis, range_estimator="minmax"))
    assert found == {0: InputContent(everywhere(DIVIDED, *changed), lossless, "1/count")}


def test_each_bucket_is_looked_at_by_itself():
    x = torch.tensor([[0.0, 1.0], [0.3, 0.5], [0.0, 0.0]])
    found = contents(x, torch.tensor([0, 1, 0]), QuantizerConfig(range_estimator="minmax"))
    assert found[0] == InputContent(everywhere(SparseContent(1, 1, 1, 1)), WIDTHS, "1/count")
    # Nobody stores the places of non-zeros where there is no zero; at 1 bit there are only zeros.
    full, none = SparseContent(2, 2, 2, None), SparseContent(0, 0, 0, 0)
    assert found[1] == InputContent(everywhere(full, (1, none)))


def test_the_paper_s_floor_never_reaches_the_largest_value():
    assert contents(BINARY, config=QuantizerConfig.paper())[0].lossless == ()


def test_zeros_that_become_something_else_are_counted():
    x = torch.tensor([[-1.0, 0.0], [0.25, 2.0]])  # at 1 bit -1, -1, -1 and 2
    found = contents(x, config=QuantizerConfig(range_estimator="minmax"))
    assert found[0].by_width[1] == SparseContent(4, 2, 2, None)


def test_many_values_have_no_codebook():
    def number(x):
        return contents(x.view(20, 30))[0].by_width[32].num_values

    assert number(torch.arange(600.0)) is None
    assert number(torch.arange(600.0) % 257) == 256


def test_many_values_that_are_rarely_zero_are_looked_at_as_they_are_alone():
    assert set(contents(torch.arange(600.0).view(20, 30))[0].by_width) == {32}


def test_widths_can_be_lossless_where_the_values_are_few_in_each_row_alone():
    x = torch.eye(300) * torch.arange(1.0, 301)[:, None]
    found = contents(x, config=QuantizerConfig(axis="row", range_estimator="minmax"))
    bits = GapCode.of(x).num_bits
    assert found == {0: InputContent(everywhere(SparseContent(300, 1, None, bits)), WIDTHS, "own")}
