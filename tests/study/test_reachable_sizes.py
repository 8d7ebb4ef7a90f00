import itertools

from sgquant_optuna.quantization.memory import honest_memory
from sgquant_optuna.study import reachable_sizes
from sgquant_optuna.study.reachable_sizes import ReachableSizes
from sgquant_optuna.study.search_space import BitWidthSearchSpace
from tests.hand_made import WIDTHS, layout


def sizes_of(frozen=None):
    made = layout()
    space = BitWidthSearchSpace(made.sizes, candidates=WIDTHS, frozen=frozen)
    every = sorted(
        honest_memory(
            made, space.from_params(dict(zip(space.names, widths, strict=True)))
        ).memory_bytes
        for widths in itertools.product(WIDTHS, repeat=len(space.names))
    )
    return ReachableSizes(made, space), every


def test_the_sizes_by_hand():
    sizes, _ = sizes_of()
    # Four sites of 500 * 64 values with a range of 8 bytes each, and a bit a node for its bucket.
    assert sizes.smallest == 4 * (500 * 64 / 8 + 8) + 125
    assert sizes.largest == 4 * (500 * 64 + 8) + 125


def test_the_largest_below_a_budget_is_that_of_a_full_list():
    for frozen in (None, {"conv1/embedding/bucket0": 4}):
        sizes, every = sizes_of(frozen)
        assert (sizes.smallest, sizes.largest) == (every[0], every[-1])
        for budget in (every[0], 30_000.0, every[5] + 0.5, every[-1] + 1):
            assert sizes.largest_below(budget) == max(n for n in every if n <= budget)
        assert sizes.largest_below(every[0] - 1) is None


def test_of_too_many_sizes_one_that_exists_is_found(monkeypatch):
    monkeypatch.setattr(reachable_sizes, "_MAX_SIZES", 4)
    sizes, every = sizes_of()
    found = sizes.largest_below(60_000.0)
    assert found in every and 0.75 * 60_000 < found <= 60_000
