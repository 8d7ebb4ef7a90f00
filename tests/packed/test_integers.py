import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgquant_optuna.packed.integers import (
    pack_integers,
    read_integer_run,
    read_integers,
)


@given(
    values=st.lists(st.integers(0, 2**19 - 1), max_size=70),
    bits=st.integers(0, 19),
    ends=st.tuples(st.integers(0, 70), st.integers(0, 70)),
)
@settings(deadline=None, max_examples=60)
def test_a_run_is_what_reading_one_by_one_gives(values, bits, ends):
    values = torch.tensor(values, dtype=torch.long) % (1 << bits)
    packed = pack_integers(values, bits)
    start, stop = sorted(min(end, len(values)) for end in ends)
    expected = read_integers(packed, len(values), bits, torch.arange(start, stop))
    assert read_integer_run(packed, len(values), bits, start, stop).tolist() == expected.tolist()
