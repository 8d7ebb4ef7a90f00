import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.quantization.layout import row_bytes
from sgquant_optuna.quantization.packing import pack, unpack

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16)


def test_the_worked_example_of_the_docstring():
    packed = pack(torch.tensor([[5, 3, 6, 0, 7]]), 3)
    assert packed.tolist() == [[0b111110, 0b000001, 0b010011]]
    assert unpack(packed, 5, 3).tolist() == [[5, 3, 6, 0, 7]]


def test_eight_single_bits_fill_one_byte_from_the_lowest():
    assert pack(torch.tensor([[1, 0, 0, 0, 0, 0, 1, 1]]), 1).tolist() == [[0b11000001]]


def test_16_bits_are_the_high_bytes_and_then_the_low_ones():
    packed = pack(torch.tensor([[0x1234, 0xFFEE]]), 16)
    assert packed.tolist() == [[0x12, 0xFF, 0x34, 0xEE]]
    assert unpack(packed, 2, 16).tolist() == [[0x1234, 0xFFEE]]


@given(
    bit_width=st.sampled_from(WIDTHS),
    num_rows=st.integers(0, 5),
    num_columns=st.integers(0, 40),
    seed=st.integers(0, 2**31),
)
def test_codes_come_back_and_bytes_are_as_announced(bit_width, num_rows, num_columns, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bit_width, (num_rows, num_columns), generator=generator)
    packed = pack(codes, bit_width)
    assert packed.dtype == torch.uint8
    assert packed.shape == (num_rows, row_bytes(num_columns, bit_width))
    assert unpack(packed, num_columns, bit_width).long().equal(codes)


@pytest.mark.parametrize("bit_width", WIDTHS)
def test_rows_can_be_read_alone(bit_width):
    codes = torch.randint(2**bit_width, (6, 13))
    rows = pack(codes, bit_width)[torch.tensor([4, 1])]
    assert unpack(rows, 13, bit_width).long().equal(codes[[4, 1]])


@pytest.mark.parametrize("bit_width", WIDTHS)
def test_columns_can_be_read_alone(bit_width):
    codes = torch.randint(2**bit_width, (3, 13))
    packed = pack(codes, bit_width)
    for start in range(13):
        for stop in range(start, 14):
            columns = unpack(packed, 13, bit_width, start, stop)
            assert columns.long().equal(codes[:, start:stop])


@pytest.mark.parametrize(("code", "bit_width"), [(2, 1), (8, 3), (256, 8), (65536, 16), (-1, 4)])
def test_a_code_that_does_not_fit_is_refused(code, bit_width):
    with pytest.raises(PackingError, match=f"for {bit_width} bits, got {code}"):
        pack(torch.tensor([[0, code]]), bit_width)


@pytest.mark.parametrize("codes", [torch.zeros(2, 2), torch.zeros(3, dtype=torch.long)])
def test_codes_must_be_an_integer_matrix(codes):
    with pytest.raises(PackingError, match="expected an integer matrix"):
        pack(codes, 2)


def test_rows_of_another_length_are_refused():
    packed = pack(torch.zeros(2, 9, dtype=torch.long), 4)
    with pytest.raises(PackingError, match=r"expected uint8 \[R, 6\] for 11 codes of 4 bits"):
        unpack(packed, 11, 4)


@pytest.mark.parametrize("bit_width", [0, 9, 32])
def test_a_width_that_cannot_be_packed_is_refused(bit_width):
    with pytest.raises(ValueError, match="bit width to pack"):
        pack(torch.zeros(1, 1, dtype=torch.long), bit_width)
