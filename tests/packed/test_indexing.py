import pytest
import torch

from sgquant_optuna.packed.indexing import places_in_buckets, row_numbers, split_index


def test_places_count_the_nodes_of_each_bucket_in_node_order():
    bucket = torch.tensor([1, 0, 1, 1, 0], dtype=torch.uint8)
    assert places_in_buckets(bucket, [2, 3]).tolist() == [0, 0, 1, 2, 1]


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (slice(1, 4, 2), [1, 3]),
        (-1, 4),
        ([0, -2], [0, 3]),
        ([True, False, False, True, False], [0, 3]),
    ],
)
def test_an_index_names_rows_from_the_start(index, rows):
    assert row_numbers(index, 5).tolist() == rows


@pytest.mark.parametrize("index", [None, ..., 1.5, True, "x"])
def test_another_index_names_no_rows(index):
    assert row_numbers(index, 5) is None
    assert split_index(index, 5) is None


def test_an_index_of_rows_and_columns_is_split():
    rows, rest = split_index(([4, 1], slice(0, 2)), 5)
    assert rows.tolist() == [4, 1]
    assert rest[0].tolist() == [0, 1] and rest[1] == slice(0, 2)
    rows, rest = split_index([4, 1], 5)
    assert rows.tolist() == [4, 1] and rest is None
