import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sgquant_optuna.quantization.affine import (
    affine_parameters,
    dequantize,
    fake_quantize,
    quantize,
)

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16)


def parameters(lower, upper, bit_width, rounding):
    return affine_parameters(
        torch.tensor([lower]), torch.tensor([upper]), bit_width, rounding=rounding
    )


def test_floor_is_the_papers_formula():
    # Range [0, 4] at 2 bits: scale 1, codes floor(x), and 4.0 itself takes the last code.
    scale, zero_point = parameters(0.0, 4.0, 2, "floor")
    assert scale.item() == 1.0
    x = torch.tensor([[0.0, 0.99, 1.0, 3.5, 4.0]])
    codes = quantize(x, scale, zero_point, 2, rounding="floor")
    assert codes.tolist() == [[0, 0, 1, 3, 3]]
    assert dequantize(codes, scale, zero_point).tolist() == [[0.0, 0.0, 1.0, 3.0, 3.0]]


def test_nearest_represents_both_ends():
    # Range [-1, 2] at 2 bits: scale 1, codes -1, 0, 1, 2.
    scale, zero_point = parameters(-1.0, 2.0, 2, "nearest")
    assert scale.item() == 1.0
    x = torch.tensor([[-1.0, -0.6, -0.4, 1.6, 2.0]])
    codes = quantize(x, scale, zero_point, 2)
    assert codes.tolist() == [[0, 0, 1, 3, 3]]
    assert dequantize(codes, scale, zero_point).tolist() == [[-1.0, -1.0, 0.0, 2.0, 2.0]]


@pytest.mark.parametrize("rounding", ["nearest", "floor"])
@pytest.mark.parametrize("bit_width", WIDTHS)
def test_codes_fill_their_width_and_values_outside_take_the_end_codes(bit_width, rounding):
    scale, zero_point = parameters(-2.0, 3.0, bit_width, rounding)
    x = torch.tensor([[-torch.inf, -5.0, -2.0, 3.0, 7.0, torch.inf]])
    codes = quantize(x, scale, zero_point, bit_width, rounding=rounding).tolist()[0]
    top = 2**bit_width - 1
    assert codes == [0, 0, 0, top, top, top]


def test_codes_above_8_bits_are_wider_than_a_byte():
    scale, zero_point = parameters(0.0, 1.0, 16, "nearest")
    assert quantize(torch.ones(1, 1), scale, zero_point, 16).dtype == torch.int32
    assert quantize(torch.ones(1, 1), scale, zero_point, 8).dtype == torch.uint8


@pytest.mark.parametrize("rounding", ["nearest", "floor"])
def test_a_constant_range_comes_back_exactly(rounding):
    scale, zero_point = parameters(0.3, 0.3, 4, rounding)
    assert scale.item() == 1.0
    x = torch.full((2, 2), 0.3)
    assert fake_quantize(x, scale, zero_point, 4, rounding=rounding).equal(x)


def test_nan_has_no_code_but_is_seen_in_training():
    scale, zero_point = parameters(0.0, 1.0, 2, "nearest")
    x = torch.tensor([[0.0, torch.nan]])
    with pytest.raises(ValueError, match="got NaN"):
        quantize(x, scale, zero_point, 2)
    assert fake_quantize(x, scale, zero_point, 2).isnan().tolist() == [[False, True]]


@given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20),
    bit_width=st.sampled_from(WIDTHS),
    rounding=st.sampled_from(["nearest", "floor"]),
)
def test_the_error_inside_the_range_is_at_most_a_step(values, bit_width, rounding):
    x = torch.tensor([values])
    scale, zero_point = affine_parameters(
        x.min()[None], x.max()[None], bit_width, rounding=rounding
    )
    error = (fake_quantize(x, scale, zero_point, bit_width, rounding=rounding) - x).abs().max()
    bound = scale.item() * (0.5 if rounding == "nearest" else 1.0)
    assert error.item() <= bound * 1.001 + 2e-5


@pytest.mark.parametrize("rounding", ["nearest", "floor"])
def test_the_gradient_passes_unchanged_inside_and_outside_the_range(rounding):
    # The paper: d(quantized x) / dx is taken as 1, so the loss gradient arrives as it is.
    scale, zero_point = parameters(0.0, 1.0, 2, rounding)
    x = torch.tensor([[-3.0, 0.2, 0.5, 9.0]], requires_grad=True)
    weights = torch.tensor([[1.0, -2.0, 3.0, 4.0]])
    (fake_quantize(x, scale, zero_point, 2, rounding=rounding) * weights).sum().backward()
    assert x.grad.equal(weights)


def test_the_gradient_of_a_loss_is_that_at_the_quantized_value():
    # L = y**2 with y the quantized x: the estimator gives dL/dx = 2 y, not 2 x.
    scale, zero_point = parameters(0.0, 3.0, 2, "nearest")
    x = torch.tensor([[0.4, 1.7]], requires_grad=True)
    fake_quantize(x, scale, zero_point, 2).square().sum().backward()
    assert x.grad.tolist() == [[0.0, 4.0]]


def test_rows_of_different_widths_are_quantized_in_one_call():
    lower, upper = torch.zeros(2, 1), torch.full((2, 1), 3.0)
    bit_width = torch.tensor([[1], [2]])
    scale, zero_point = affine_parameters(lower, upper, bit_width)
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    fake = fake_quantize(x, scale, zero_point, bit_width)
    assert fake.tolist() == [[0.0, 3.0], [1.0, 2.0]]
