"""Instructions of a pickle that describe arrays are followed; all others are refused by name."""

import pickle

import numpy as np
import pytest

from sgquant_optuna.graph.pickled_values import Described, read_pickled


def test_plain_values_are_those_of_the_unpickler():
    value = {1: [2, 3, 70_000, -1, 2**40], "x": (True, False, None, (), b"ab", "é"), 300: []}
    for protocol in (2, 3, 4):
        content = pickle.dumps({**value, "x": (True, None, "é")}, protocol=protocol)
        assert read_pickled(content) == {**value, "x": (True, None, "é")}
    assert read_pickled(pickle.dumps(value, protocol=4)) == value


def test_a_list_that_stands_twice_is_one_list():
    one = [1]
    found = read_pickled(pickle.dumps([one, one], protocol=4))
    assert found[0] is found[1]


def test_an_array_is_described():
    found = read_pickled(pickle.dumps(np.array([[1, 2]], dtype=np.int16), protocol=4))
    assert isinstance(found, Described)
    version, shape, dtype, by_columns, content = found.state
    assert (found.kind, shape, by_columns) == ("array", (1, 2), False)
    assert content == b"\x01\x00\x02\x00"
    assert (dtype.kind, dtype.arguments[0]) == ("dtype", "i2")


def test_what_python_2_wrote_is_text_of_the_same_bytes():
    assert read_pickled(b"\x80\x02U\x03\x00\xff\x80.").encode("latin1") == b"\x00\xff\x80"
    empty = b"\x80\x02ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R."
    assert read_pickled(empty) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "it would call os.system, which no array needs"),
        (pickle.dumps(print, protocol=4), "it would call builtins.print"),
        (b"c" + b"x" * 10_000 + b"\ny\n.", "it would call x{100},"),
        (b"\x80\x02cnumpy\nndarray\n)R.", "it would call ndarray, which no array needs"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "an object that is no sparse matrix"),
        (b"\x80\x02]}b.", "it changes an object that is none"),
        (b"(i__main__\nX\n.", "an instruction INST, which no array needs"),
        (b"Pid\n.", "an instruction PERSID"),
        (b"\x80\x02K\x01K\x02.", "it does not end in one value"),
        (b"\x80\x02(.", "it uses a mark as a value"),
        (b"\x80\x02h\x07.", "its instructions lack a value"),
        (b"\x80\x02\x86.", "its instructions lack a value"),
        (b"\x80\x02K\x01t.", "its instructions lack a value|it lacks a mark"),
        (b"\x80\x02K\x01K\x02a.", "it appends to what is no list"),
        (b"\x80\x02}]K\x01s.", "a key in it is neither text nor number"),
        (b"\x80\x02](K\x01u.", "it puts keys into what is no dictionary"),
        (b"\x80\x02T\xff\xff\xff\x7fab", "expected 2147483647 bytes"),
        (b"", "exhausted"),
    ],
)
def test_other_instructions_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        read_pickled(content)


def test_a_tuple_of_tuples_without_end_is_no_key():
    nested = b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s."
    with pytest.raises(ValueError, match="a key in it is neither text nor number"):
        read_pickled(nested)
