import pytest
import torch

from sgquant_optuna.quantization import row_values as module
from sgquant_optuna.quantization.row_values import reciprocals, row_values

THIRD = 1 / 3


@pytest.mark.parametrize(
    ("rows", "origin", "values"),
    [
        ([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]], "1/count", [0.5, 1.0]),
        ([[THIRD, THIRD, THIRD], [0.0, 0.0, 0.0]], "1/count", [THIRD, 0.0]),
        ([[0.0, 0.0, 0.0]], "1/count", [0.0]),
        ([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]], "own", [1.0, 1.0]),
        ([[-2.0, 0.0, -2.0], [0.0, 7.0, 7.0]], "own", [-2.0, 7.0]),
        ([[-0.5, -0.5, 0.0]], "own", [-0.5]),
        ([[], []], "1/count", [0.0, 0.0]),
    ],
)
def test_the_value_of_each_row_is_found(rows, origin, values):
    found = row_values(torch.tensor(rows))
    assert found is not None
    assert found[0] == origin
    assert torch.equal(found[1], torch.tensor(values))


@pytest.mark.parametrize(
    "rows", [[[0.5, 0.25, 0.0]], [[1.0, -1.0, 0.0]], [[THIRD, 0.33333334, 0.0], [1.0, 2.0, 0.0]]]
)
def test_a_row_of_two_values_has_none(rows):
    assert row_values(torch.tensor(rows)) is None


def test_rows_are_looked_at_in_blocks(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 6)  # two rows
    x = torch.eye(3).repeat(3, 1) * torch.arange(1.0, 10)[:, None]
    assert row_values(x)[1].tolist() == list(range(1, 10))
    x[8, 0] = 5
    assert row_values(x) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_do_not_hold_the_float32_of_a_third(dtype):
    # 1/3 has another value in each type; 1/2 has the same.
    assert row_values(torch.full((1, 3), THIRD, dtype=dtype))[0] == "own"
    assert row_values(torch.full((1, 2), 0.5, dtype=dtype))[0] == "1/count"


def test_reciprocals_are_the_quotients_of_normalised_rows():
    counts = torch.arange(1, 3000)
    assert torch.equal(reciprocals(counts), torch.tensor([1 / count for count in range(1, 3000)]))
