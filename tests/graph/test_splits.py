import pytest
import torch
from torch_geometric.data import Data

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.split_choice import parse_split
from sgquant_optuna.graph.splits import choose_split, num_splits, split_graphs

# Of four nodes, split 0 trains on the first, split 1 on the second; the last is for tests of both.
TRAIN = torch.tensor([[1, 0], [0, 1], [0, 0], [0, 0]], dtype=torch.bool)
VAL = torch.tensor([[0, 1], [1, 0], [1, 1], [0, 0]], dtype=torch.bool)
TEST = torch.tensor([0, 0, 0, 1], dtype=torch.bool)


def graph(**columns):
    return Data(
        x=torch.eye(4), **{"train_mask": TRAIN, "val_mask": VAL, "test_mask": TEST} | columns
    )


def test_a_split_is_a_column_of_each_mask_that_has_several():
    data = graph()
    chosen = choose_split(data, 1)
    assert chosen.train_mask.tolist() == [False, True, False, False]
    assert chosen.val_mask.tolist() == [True, False, True, False]
    assert chosen.test_mask.tolist() == TEST.tolist()
    assert chosen.chosen_split == 1 and chosen.x is data.x
    assert data.train_mask is TRAIN and "chosen_split" not in data
    assert choose_split(chosen, 1) is chosen
    assert num_splits(data) == 2
    assert [one.chosen_split for one in split_graphs(data, "all")] == [0, 1]


@pytest.mark.parametrize(
    ("data", "split", "message"),
    [
        (graph(), 2, "split: expected a number from 0 to 1, got 2"),
        (graph(test_mask=TRAIN.repeat(1, 2)), 0, "2 in train_mask, 2 in val_mask, 4 in test_mask"),
        (choose_split(graph(), 0), 1, "choose split 1 of, got split 0 that was chosen before"),
        (choose_split(graph(), 0), "all", "for split='all', got one split"),
        (graph(train_mask=TEST, val_mask=TEST), 0, "choose split 0 of, got one split"),
    ],
)
def test_a_split_that_is_not_there_is_refused(data, split, message):
    with pytest.raises(GraphError, match=message):
        split_graphs(data, split)


def test_the_words_of_a_command_line():
    assert (parse_split("3", what="--split"), parse_split("all", what="--split")) == (3, "all")
    for wrong in ("-1", "every", "", "1.5", "²"):
        with pytest.raises(ValueError, match="--split: expected the number of a split from 0"):
            parse_split(wrong, what="--split")
    for wrong in (-1, True, "all", 1.0):
        with pytest.raises(ValueError, match="split: expected the number of"):
            choose_split(graph(), wrong)
