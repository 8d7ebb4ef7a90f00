import pytest

from sgquant_optuna.quantization.layout import packed_nbytes, planes, row_bytes


@pytest.mark.parametrize(
    ("bit_width", "expected"),
    [(1, (1,)), (3, (2, 1)), (5, (4, 1)), (6, (4, 2)), (7, (4, 2, 1)), (8, (8,)), (16, (8, 8))],
)
def test_planes_add_up_to_the_width(bit_width, expected):
    assert planes(bit_width) == expected
    assert sum(planes(bit_width)) == bit_width


def test_each_plane_of_a_row_starts_at_a_byte():
    assert row_bytes(8, 1) == 1
    assert row_bytes(9, 1) == 2
    assert row_bytes(9, 3) == 3 + 2
    assert row_bytes(0, 4) == 0
    assert packed_nbytes(2708, 1433, 1) == 2708 * 180


@pytest.mark.parametrize("bit_width", [0, 9, 32])
def test_a_width_that_is_not_packed_is_refused(bit_width):
    with pytest.raises(ValueError, match="bit width to pack"):
        planes(bit_width)
