"""Ranges of blocks equal those of the whole matrix, whatever the order of the values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgquant_optuna.packed.growing_histogram import NUM_BINS, GrowingHistogram
from sgquant_optuna.packed.kernels import has_kernels
from sgquant_optuna.quantization.affine import affine_parameters, fake_quantize
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.ranges import estimate_ranges

KINDS = {
    "normal": lambda g: torch.randn(3000, 16, generator=g),
    "normal far from zero": lambda g: torch.randn(3000, 16, generator=g) + 1000,
    "sparse": lambda g: torch.rand(3000, 16, generator=g)
    * (torch.rand(3000, 16, generator=g) < 0.03),
    "zeros and ones": lambda g: (torch.rand(3000, 16, generator=g) < 0.1).float(),
    "one outlier at the end": lambda g: torch.cat(
        [torch.randn(2999, 16, generator=g), torch.full((1, 16), 1e6)]
    ),
    "heavy tails": lambda g: torch.randn(3000, 16, generator=g) ** 5,
    "rising": lambda g: torch.randn(3000, 16, generator=g).flatten().sort().values.view(3000, 16),
    "tiny": lambda g: torch.randn(3000, 16, generator=g) * 1e-40,
    "constant": lambda g: torch.full((3000, 16), 0.1),
    "zeros": lambda g: torch.zeros(3000, 16),
}  # fmt: skip


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def histogram_of(x, group=None, num_groups=1, block=256, fast=None):
    made = GrowingHistogram(num_groups)
    for start in range(0, len(x), block):
        rows = slice(start, start + block)
        made.add(x[rows].contiguous(), None if group is None else group[rows], fast=fast)
    return made


def squared_error(x, lower, upper, width):
    scale, zero_point = affine_parameters(lower, upper, width)
    return float((fake_quantize(x, scale, zero_point, width) - x).double().square().sum())


def test_bins_hold_number_and_sum_of_their_values():
    """Values 0 to 1, then 3: the bins of 2**-12 begin at -0.5, and one merge reaches 3."""
    made = GrowingHistogram(1)
    made.add(torch.tensor([[0.0, 0.25, 1.0]]), None)
    assert (made.width[0], made.origin[0]) == (2**-12, -0.5)
    assert made.counts[0, [2048, 3072, 6144]].tolist() == [1, 1, 1]
    made.add(torch.tensor([[3.0], [0.25]]), None)
    assert (made.width[0], made.origin[0]) == (2**-11, -0.5)
    assert made.counts[0, [1024, 1536, 3072, 7168]].tolist() == [1, 2, 1, 1]
    assert made.sums[0, [1536, 7168]].tolist() == [0.5, 3.0]
    assert (made.lower[0], made.upper[0]) == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
def test_ranges_of_blocks_have_the_error_of_those_of_the_matrix(kind, width):
    """The squared error is at most 0.1 % above that of the range that is chosen in memory."""
    x = KINDS[kind](torch.Generator().manual_seed(0))
    lower, upper = histogram_of(x).ranges((width,))
    known = estimate_ranges(x, None, 1, [width], QuantizerConfig())
    mine, theirs = squared_error(x, lower, upper, width), squared_error(x, *known, width)
    assert mine <= theirs * 1.001 + 1e-30
    if float(x.min()) == 0:
        assert float(lower) == 0


@pytest.mark.parametrize("fast", [True, False])
def test_each_bucket_has_the_range_of_its_rows(fast):
    if fast and not has_kernels():
        pytest.skip("needs numba")
    x = torch.randn(900, 8, generator=torch.Generator().manual_seed(1))
    group = (torch.arange(900) % 3).to(torch.uint8)
    x *= (group.float() * 10 + 1)[:, None]
    lower, upper = histogram_of(x, group, 5, fast=fast).ranges((4, 8, 4, 2, 32))
    for number, width in enumerate((4, 8, 4)):
        of = x[group == number]
        known = estimate_ranges(of, None, 1, [width], QuantizerConfig())
        ends = lower[number : number + 1], upper[number : number + 1]
        assert squared_error(of, *ends, width) <= squared_error(of, *known, width) * 1.001
    assert lower[3:].tolist() == upper[3:].tolist() == [0, 0]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(FLOATS, min_size=1, max_size=9), min_size=1, max_size=6))
def test_no_value_is_lost_and_the_values_cover_a_quarter_of_the_bins(blocks):
    made, plain = GrowingHistogram(1), GrowingHistogram(1)
    for block in blocks:
        for one, fast in ((made, None), (plain, False)):
            one.add(torch.tensor([block]), None, fast=fast)
    values = np.concatenate([np.float32(block) for block in blocks]).astype(float)
    assert made.counts.sum() == len(values)
    assert made.sums.sum() == pytest.approx(values.sum(), rel=1e-9, abs=1e-9 * abs(values).max())
    assert (made.lower[0], made.upper[0]) == (values.min(), values.max())
    assert np.array_equal(made.counts, plain.counts)
    if made.lower[0] < made.upper[0]:
        assert (made.upper[0] - made.lower[0]) / made.width[0] >= NUM_BINS / 4 - 1


def test_a_histogram_goes_on_from_its_state():
    x = torch.randn(512, 4)
    whole = histogram_of(x)
    half = GrowingHistogram.of_state(histogram_of(x[:256]).state())
    half.add(x[256:], None)
    for name, array in whole.state().items():
        assert np.array_equal(array, half.state()[name])
