import copy

import pytest
import torch

from sgquant_optuna.exceptions import CalibrationError
from sgquant_optuna.graph.sparse_features import SparseFeatures
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.quantizers import FeatureQuantizer

MINMAX = QuantizerConfig(range_estimator="minmax")
BUCKET = torch.tensor([0, 1, 1])
X = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 1.0], [2.0, 3.0, 0.0]])


def calibrated(config=MINMAX, *, x=X, bucket=None, num_buckets=1, widths=(1, 2, 8)):
    quantizer = FeatureQuantizer("conv1/embedding", config)
    quantizer.calibrate(x, widths, bucket=bucket, num_buckets=num_buckets)
    return quantizer


def test_it_is_the_identity_until_widths_are_set():
    quantizer = calibrated()
    assert quantizer(X) is X


def test_each_bucket_has_its_own_width():
    quantizer = calibrated(bucket=BUCKET, num_buckets=2)
    quantizer.set_bit_widths((1, 2))  # over [0, 3]: 1 bit is {0, 3}, 2 bits are {0, 1, 2, 3}
    assert quantizer(X, BUCKET).tolist() == [[0.0, 0.0, 3.0], [3.0, 0.0, 1.0], [2.0, 3.0, 0.0]]


def test_a_bucket_of_32_bits_is_untouched_beside_a_quantized_one():
    x = X + 0.25
    quantizer = calibrated(x=x, bucket=BUCKET, num_buckets=2)
    quantizer.set_bit_widths((1, 32))
    fake = quantizer(x, BUCKET)
    assert fake[1:].equal(x[1:])
    assert fake[0].tolist() == [0.25, 0.25, 3.25]


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        # 1 bit keeps the two ends of each range, nearest rounding.
        ("tensor", [[0.0, 0.0, 3.0], [3.0, 0.0, 0.0], [3.0, 3.0, 0.0]]),
        ("bucket", [[0.0, 0.0, 2.0], [3.0, 0.0, 0.0], [3.0, 3.0, 0.0]]),
        ("column", [[0.0, 0.0, 2.0], [3.0, 0.0, 0.0], [3.0, 3.0, 0.0]]),
        ("row", [[0.0, 0.0, 2.0], [3.0, 0.0, 0.0], [3.0, 3.0, 0.0]]),
    ],
)
def test_the_axis_tells_what_shares_a_range(axis, expected):
    config = QuantizerConfig(range_estimator="minmax", axis=axis)
    quantizer = calibrated(config, bucket=BUCKET, num_buckets=2)
    quantizer.set_bit_widths((1, 1))
    assert quantizer(X, BUCKET).tolist() == expected


@pytest.mark.parametrize("axis", ["tensor", "bucket", "column", "row"])
@pytest.mark.parametrize("widths", [(1, 2), (2, 32), (8, 1)])
@pytest.mark.parametrize("estimator", ["minmax", "least_squares"])
def test_sparse_features_get_the_values_of_dense_ones(axis, widths, estimator):
    config = QuantizerConfig(range_estimator=estimator, axis=axis)
    x = torch.rand(3, 3, generator=torch.Generator().manual_seed(0)) * (X > 0)
    quantizer = calibrated(config, x=x, bucket=BUCKET, num_buckets=2)
    quantizer.set_bit_widths(widths)
    fake = quantizer(SparseFeatures.from_dense(x), BUCKET)
    dense = fake.dense() if isinstance(fake, SparseFeatures) else fake
    assert dense.equal(quantizer(x, BUCKET))


def test_sparse_features_become_dense_where_zero_does_not_stay_zero():
    x = X - 1.0  # range [-1, 2]; at 1 bit zero becomes -1
    x[0, 0] = 0.0
    quantizer = calibrated(x=x, widths=(1,))
    quantizer.set_bit_widths((1,))
    fake = quantizer(SparseFeatures.from_dense(x))
    assert not isinstance(fake, SparseFeatures)
    assert fake.equal(quantizer(x))


def test_a_copy_keeps_its_ranges_and_its_own_widths():
    quantizer = calibrated()
    quantizer.set_bit_widths((1,))
    other = copy.deepcopy(quantizer)
    other.set_bit_widths((2,))
    assert quantizer.bit_widths == (1,)
    assert other(X).equal(X)


def test_ranges_are_not_part_of_the_state_dict():
    assert calibrated().state_dict() == {}


def test_an_uncalibrated_quantizer_refuses_widths():
    quantizer = FeatureQuantizer("conv1/embedding", MINMAX)
    with pytest.raises(CalibrationError, match=r"conv1/embedding: no range for 4 bits"):
        quantizer.set_bit_widths((4,))


def test_a_width_without_range_is_refused():
    with pytest.raises(CalibrationError, match=r"no range for 3 bits; calibrated for \(1, 2, 8\)"):
        calibrated().set_bit_widths((3,))


def test_the_number_of_widths_is_checked():
    with pytest.raises(ValueError, match="expected 1 bit widths, got 2"):
        calibrated().set_bit_widths((1, 2))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_calibration_names_the_place_of_a_bad_value(bad):
    x = X.clone()
    x[1, 1] = bad
    with pytest.raises(CalibrationError, match="conv1/embedding: features to calibrate on"):
        calibrated(x=x)


def test_calibration_on_nothing_is_refused():
    with pytest.raises(CalibrationError, match="expected values to calibrate on, got none"):
        calibrated(x=torch.empty(0, 3))


def test_rows_without_a_bucket_are_refused():
    quantizer = calibrated(bucket=BUCKET, num_buckets=2)
    quantizer.set_bit_widths((1, 1))
    with pytest.raises(CalibrationError, match="expected the degree bucket of 3 rows, got none"):
        quantizer(X)
    with pytest.raises(CalibrationError, match="expected the degree bucket of 3 rows, got 2"):
        quantizer(X, BUCKET[:2])


def test_a_bucket_that_was_empty_at_calibration_is_refused_later():
    quantizer = calibrated(bucket=torch.tensor([0, 0, 2]), num_buckets=3)
    quantizer.set_bit_widths((1, 32, 1))
    with pytest.raises(CalibrationError, match="degree bucket 1 had no nodes at calibration"):
        quantizer(X, torch.tensor([0, 1, 2]))


def test_one_range_a_row_is_for_one_graph_only():
    quantizer = calibrated(QuantizerConfig(range_estimator="minmax", axis="row"))
    quantizer.set_bit_widths((1,))
    with pytest.raises(CalibrationError, match="one range for each of 3 rows, got 2 rows"):
        quantizer(X[:2])


def test_values_of_other_graphs_are_clipped_to_the_calibrated_range():
    quantizer = calibrated()
    quantizer.set_bit_widths((8,))
    assert quantizer(torch.tensor([[-9.0, 99.0, 3.0]])).tolist() == [[0.0, 3.0, 3.0]]
