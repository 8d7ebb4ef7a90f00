import pytest

from sgquant_optuna.quantization.input_stores import InputContent, SparseContent, input_stores

# 10 rows of 9 columns: 20 non-zeros, 3 at most in a row, whose gaps take 30 bits. A count takes 2
# bits, the class of a column 3, a parameter 4, a start 6.
PLACES = 3 + 5 + 4 + 2 + 4


def content(num_values, *, gap_bits=30, lossless=(), row_value=None):
    one = SparseContent(20, 3, num_values, gap_bits)
    return InputContent(dict.fromkeys((1, 2, 4, 8, 32), one), lossless, row_value)


def test_binary_features_need_only_the_places_of_their_non_zeros():
    stores = input_stores(10, 9, 1, 1, content(1))
    assert stores == {
        "rows": 10 * 2 + 8,
        "codebook": 10 * 2 + 4 * 2,  # zero and the other value
        "sparse": PLACES + 3 + 8,
        "sparse codebook": PLACES + 0 + 4,
    }


def test_codes_of_many_values_take_the_searched_bits():
    stores = input_stores(10, 9, 4, 1, content(None))
    assert stores == {"rows": 10 * 5 + 8, "sparse": PLACES + 10 + 8}


def test_a_codebook_takes_the_bits_of_its_values():
    stores = input_stores(10, 9, 8, 1, content(4))
    assert stores["codebook"] == 10 * (3 + 2) + 4 * 5  # 5 values with zero: planes of 2 and 1
    assert stores["sparse codebook"] == PLACES + 5 + 4 * 4


def test_untouched_features_are_float32_or_stored_without_loss():
    stores = input_stores(10, 9, 32, 1, content(None))
    assert stores == {"rows": 4 * 90, "sparse": PLACES + 4 * 20}


def test_without_places_there_is_no_sparse_store():
    assert set(input_stores(10, 9, 2, 1, content(3, gap_bits=None))) == {"rows", "codebook"}
    assert set(input_stores(10, 9, 2, 1, content(None, gap_bits=None))) == {"rows"}


def test_of_a_width_that_nobody_looked_at_there_are_rows_alone():
    assert input_stores(10, 9, 3, 1, content(1)) == {"rows": 10 * 5 + 8}


@pytest.mark.parametrize(
    ("row_value", "num_values", "expected"),
    [
        ("1/count", 3, {"sparse 1/count": PLACES}),
        ("1/count", None, {"sparse 1/count": PLACES}),
        # An index of 2 bits for each row, and the values.
        ("own", 4, {"sparse row codebook": PLACES + 3 + 16, "sparse row values": PLACES + 40}),
        ("own", None, {"sparse row values": PLACES + 40}),
        (None, 4, {}),
    ],
)
def test_rows_of_one_value_need_no_code_for_each_non_zero(row_value, num_values, expected):
    def of_rows(bit_width, **more):
        stores = input_stores(
            10, 9, bit_width, 1, content(num_values, row_value=row_value, **more)
        )
        return {name: size for name, size in stores.items() if "row " in name or "/" in name}

    assert of_rows(32) == of_rows(2, lossless=(2,)) == expected
    assert of_rows(2) == {}  # the width changes values
