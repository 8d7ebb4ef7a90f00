import numpy as np
import pytest

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed.row_layout import RowLayout


def test_buckets_lie_from_the_highest_degree_to_the_lowest():
    """Rows of 10 columns: 10 bytes at 8 bits, 5 at 4, 40 as float32; each bucket fills lines."""
    layout = RowLayout((100, 10), (8, 32, 4), (70, 10, 20), True)
    assert layout.row_nbytes == (10, 40, 5)
    assert layout.first_places == (30, 20, 0)
    assert layout.first_bytes == (128 + 448, 128, 0)  # 20 * 5 and 10 * 40, by 64
    assert layout.data_nbytes == 128 + 448 + 704
    assert layout.buckets_of(np.array([0, 19, 20, 29, 30, 99])).tolist() == [2, 2, 1, 1, 0, 0]


@pytest.mark.parametrize("bucket_rows", [(0, 5, 0), (5, 0, 0), (0, 0, 5), (2, 0, 3)])
def test_an_empty_bucket_has_no_place(bucket_rows):
    layout = RowLayout((5, 3), (1, 2, 4), bucket_rows, True)
    found = layout.buckets_of(np.arange(5))
    assert np.bincount(found, minlength=3).tolist() == list(bucket_rows)


def test_what_is_written_is_read():
    layout = RowLayout((5, 3), (1, 2), (2, 3), True)
    assert RowLayout.of_fields(layout.fields()) == layout


@pytest.mark.parametrize(
    ("widths", "rows", "message"),
    [
        ((4,), (4,), "rows of 1 buckets: expected 5 together, got"),
        ((4, 2), (5,), "rows of 2 buckets"),
        ((3, 9), (2, 3), "bit widths: expected one of"),
        ((4, 2), (6, -1), "rows of a bucket: expected a whole number"),
    ],
)
def test_parts_that_do_not_fit_are_refused(widths, rows, message):
    with pytest.raises(PackingError, match=message):
        RowLayout((5, 3), widths, rows, True)
