import torch

from sgquant_optuna.packed.blocks import cut, row_blocks


def test_edges_are_cut_at_the_rows_and_a_hub_within_it():
    blocks = list(row_blocks(torch.tensor([0, 2, 3, 7, 7, 7, 7]), 3))
    assert blocks == [
        (slice(0, 2), slice(0, 3)),
        (slice(2, 3), slice(3, 7)),
        (slice(3, 6), slice(7, 7)),
    ]
    assert cut(slice(3, 7), 3) == [slice(3, 6), slice(6, 7)]


def test_a_block_has_no_more_rows_than_it_may():
    blocks = list(row_blocks(torch.tensor([0, 1, 2, 3]), 9, most_rows=2))
    assert blocks == [(slice(0, 2), slice(0, 2)), (slice(2, 3), slice(2, 3))]
