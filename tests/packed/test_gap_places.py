import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed import gap_places
from sgquant_optuna.packed.gap_places import GapPlaces, encode
from sgquant_optuna.packed.integers import pack_integers
from sgquant_optuna.quantization.gap_codes import GapCode
from sgquant_optuna.quantization.layout import bits_for, places_nbytes


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def kernels(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(gap_places, "has_kernels", lambda device: False)
    else:
        pytest.importorskip("numba")


WORDS = torch.tensor([[0.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])


def packed(x):
    bits = bits_for(int(torch.count_nonzero(x, dim=1).max()) if len(x) else 0)
    return encode(x, bits), (x.shape[0], x.shape[1]), bits


def altered(x, **changes):
    tensors, *others = packed(x)
    return GapPlaces({**tensors, **changes}, *others)


def test_the_bits_of_four_rows_by_hand():
    tensors, _, _ = packed(WORDS)
    # Columns 1; 0 and 3; 2. Gaps 0; 0, 0; 2, with k = 0: one bit 0 three times, then 1 1 0.
    assert tensors["gaps"].tolist() == [0b011000]
    assert tensors["starts"].tolist() == [0]
    assert sum(tensor.nbytes for tensor in tensors.values()) == places_nbytes(4, 4, 2, 6)


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the same for all examples
)
@given(
    shape=st.tuples(st.integers(0, 200), st.integers(1, 90)),
    share=st.sampled_from((0.0, 0.02, 0.3, 1.0)),
    seed=st.integers(0, 99),
)
def test_places_come_back_in_order_for_any_rows(shape, share, seed):
    generator = torch.Generator().manual_seed(seed)
    often = torch.rand(shape[1], generator=generator) ** 4
    x = (torch.rand(shape, generator=generator) < share * often).float()
    tensors, *others = packed(x)
    places = GapPlaces(tensors, *others)
    most = int(torch.count_nonzero(x, dim=1).max()) if len(x) else 0
    assert sum(tensor.nbytes for tensor in tensors.values()) == places_nbytes(
        *shape, most, GapCode.of(x).num_bits
    )
    index = torch.randint(shape[0], (30,), generator=generator) if shape[0] else torch.arange(0)
    for rows in (torch.arange(shape[0]), index):
        assert places.columns(rows).equal(x[rows].nonzero()[:, 1])


def test_a_gap_that_is_far_too_long_comes_back():
    x = torch.zeros(1001, 1000)
    x[:1000, 0] = x[1000, 999] = 1
    assert altered(x).columns(torch.tensor([1000, 3])).tolist() == [999, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gaps": torch.tensor([0b11111000], dtype=torch.uint8)}, "columns below 4, got 5"),
        ({"gaps": torch.tensor([0b1011000], dtype=torch.uint8)}, "zeros after the last gap"),
        ({"gaps": torch.tensor([0xFF], dtype=torch.uint8)}, "expected columns below 4"),
        ({"gaps": torch.tensor([0b011000, 0], dtype=torch.uint8)}, "packed integers|end where"),
        ({"gaps": torch.zeros(0, dtype=torch.uint8)}, "packed integers|end where"),
        ({"gaps": torch.tensor([0b011000], dtype=torch.int8)}, "gaps of the input"),
        ({"starts": torch.tensor([1], dtype=torch.uint8)}, "end where the next 64 rows begin"),
        ({"parameters": torch.zeros(3, dtype=torch.uint8)}, "packed integers"),
        ({"counts": pack_integers(torch.tensor([3, 3, 3, 3]), 2)}, "below 4|end where"),
        ({"counts": pack_integers(torch.tensor([1, 2, 0, 0]), 2)}, "end where|zeros after"),
    ],
)
def test_places_that_cannot_be_are_refused(changes, message):
    with pytest.raises(PackingError, match=message):
        altered(WORDS, **changes)


def test_a_start_inside_another_row_is_refused():
    x = torch.eye(200)
    tensors, shape, bits = packed(x)
    starts = pack_integers(torch.tensor([0, 9, 18, 27]), bits_for(8 * len(tensors["gaps"])))
    with pytest.raises(PackingError, match="end where the next 64 rows begin"):
        GapPlaces({**tensors, "starts": starts}, shape, bits)
