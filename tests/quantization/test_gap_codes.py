import torch

from sgquant_optuna.quantization.gap_codes import ESCAPE, GapCode, column_classes, column_order


def test_a_column_of_half_the_frequency_is_in_the_next_class():
    assert column_classes(torch.tensor([8, 5, 4, 2, 1, 0])).tolist() == [0, 0, 1, 2, 3, 7]
    assert column_classes(torch.zeros(2, dtype=torch.long)).tolist() == [7, 7]
    assert column_classes(torch.tensor([1 << 40, 1])).tolist() == [0, 7]


def test_columns_are_taken_by_their_classes():
    assert column_order(torch.tensor([1, 0, 7, 0], dtype=torch.uint8)).tolist() == [1, 3, 0, 2]


def test_gaps_begin_anew_in_each_row_and_take_the_fewest_bits():
    x = torch.zeros(3, 4)
    x[0, 1] = x[1, 0] = x[1, 1] = x[2, 3] = 1
    code = GapCode.of(x)
    # Columns 1, 0, 3, 2: the gaps 0; 0 and 0; 2, the third of which begins in class 1.
    gaps = code.gaps(x)
    assert gaps.row.tolist() == [0, 1, 1, 2]
    assert gaps.gap.tolist() == [0, 0, 0, 2]
    # Of class 0: 1 + 1 + 3 bits with k = 0, 2 + 2 + 3 with k = 1.
    assert gaps.length.tolist() == [1, 1, 1, 3]
    assert code.num_bits == 6


def test_wide_gaps_take_low_bits():
    code = GapCode.of(torch.eye(64))
    # 64 gaps of 0 to 63, all of class 0: k = 4 gives 5, 6, 7 and 8 bits to 16 each. So many take 6
    # and 7 bits with k = 5.
    assert code.parameters[0] == 4
    assert code.num_bits == 16 * (5 + 6 + 7 + 8)


def test_a_gap_that_is_far_too_long_is_written_as_it_is():
    x = torch.zeros(1001, 1000)
    x[:1000, 0] = 1
    x[1000, 999] = 1  # the rarest class begins at once, with gaps of 0 in column 0
    code = GapCode.of(x)
    assert code.parameters[0] == 0
    assert int(code.gaps(x).length[-1]) == ESCAPE + 10


def test_nothing_takes_no_bits():
    for shape in ((0, 5), (5, 0), (3, 4)):
        assert GapCode.of(torch.zeros(shape)).num_bits == 0
