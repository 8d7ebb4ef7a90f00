"""Reads what a pickle of arrays says, and calls nothing.

A pickle is a program that may call any function. The published files need few of its instructions:
numbers, texts, tuples, lists and dictionaries, and objects of four known names. Those are returned
as a description, :class:`Described`, of which :mod:`.raw_arrays` makes arrays once it has checked
them. No instruction imports a module, makes an object of a class, or calls what the file names.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Names that the published files use, of NumPy 1, NumPy 2 and old and new SciPy.
_KNOWN = {
    "__builtin__ list": "list",
    "builtins list": "list",
    "collections defaultdict": "defaultdict",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "scipy.sparse.csr csr_matrix": "matrix",
    "scipy.sparse._csr csr_matrix": "matrix",
}
_CALLED = ("array", "dtype")
_MARK = object()


@dataclass(frozen=True)
class _Name:
    """A name that a pickle would import, as :data:`_KNOWN` calls it."""

    kind: str


@dataclass(eq=False)
class Described:
    """An object as a pickle describes it; nothing of it is checked.

    Args:
        kind:
            ``"array"``, ``"dtype"`` or ``"matrix"`` (``csr_matrix``).
        arguments:
            Values that would be given to the call that makes the object.
        state:
            Value that would be given to the object afterwards.
    """

    kind: str
    arguments: tuple[Any, ...]
    state: Any = None


def read_pickled(content: bytes) -> Any:
    """Return the value that a pickle describes: plain Python, or :class:`Described`.

    Args:
        content:
            The whole file; protocols 2 to 4, as Python 2 and 3 write them.

    Raises:
        ValueError:
            If it is cut or damaged, or has instructions that no array needs.
    """
    machine = _Machine()
    try:
        for instruction, argument, _ in pickletools.genops(content):
            machine.run(instruction.name, argument)
    except (IndexError, KeyError) as error:
        raise ValueError("its instructions lack a value; it is cut or damaged") from error
    return machine.result()


class _Machine:
    """Stack and memory of a pickle, for the instructions of plain values."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memory: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        """Execute one instruction."""
        if name in _PUSHED:
            self._stack.append(argument)
        elif name in _PUTS:
            self._memory[argument] = self._top()
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in _FRAMES:
            raise ValueError(f"it has an instruction {name}, which no array needs")

    def result(self) -> Any:
        """Return the only value that is left."""
        if len(self._stack) != 1:
            raise ValueError("it does not end in one value")
        return self._top()

    def _top(self) -> Any:
        if self._stack[-1] is _MARK:
            raise ValueError("it uses a mark as a value")
        return self._stack[-1]

    def pop(self) -> Any:
        """Take the last value."""
        self._top()
        return self._stack.pop()

    def pop_many(self, count: int) -> tuple[Any, ...]:
        """Take the last values, in the order in which they came."""
        return tuple(reversed([self.pop() for _ in range(count)]))

    def pop_marked(self) -> tuple[Any, ...]:
        """Take all values since the last mark, and the mark."""
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("it lacks a mark")
        values = tuple(self._stack[place + 1 :])
        del self._stack[place:]
        return values

    def push(self, value: Any) -> None:
        """Add a value."""
        self._stack.append(value)

    def memoize(self) -> None:
        """Keep the last value at the next place of the memory."""
        self._memory[len(self._memory)] = self._top()

    def get(self, place: int) -> None:
        """Add a value of the memory."""
        self._stack.append(self._memory[place])

    def name(self, text: str) -> None:
        """Add one of the known names."""
        if text not in _KNOWN:
            shown = ".".join(text.split(" ", 1))[:100]
            raise ValueError(
                f"it would call {shown}, which no array needs: do not trust this file"
            )
        self._stack.append(_Name(_KNOWN[text]))

    def name_of_stack(self) -> None:
        """Add the name whose two parts are the last values."""
        module, name = self.pop_many(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name in it is no text")
        self.name(f"{module} {name}")

    def reduce(self) -> None:
        """Describe what a call would return."""
        called, arguments = self.pop_many(2)
        if not isinstance(called, _Name) or not isinstance(arguments, tuple):
            raise ValueError("it would call what is no known name")
        if called.kind == "defaultdict":
            self._stack.append({})  # of lists; no key is asked for that is not there
        elif called.kind in _CALLED:
            self._stack.append(Described(called.kind, arguments))
        else:
            raise ValueError(f"it would call {called.kind}, which no array needs")

    def new_object(self) -> None:
        """Describe a new sparse matrix, the only object that is made without a call."""
        made, arguments = self.pop_many(2)
        if not isinstance(made, _Name) or made.kind != "matrix" or arguments != ():
            raise ValueError("it would make an object that is no sparse matrix")
        self._stack.append(Described("matrix", ()))

    def build(self) -> None:
        """Give a described object its state."""
        state = self.pop()
        target = self._top()
        if not isinstance(target, Described) or target.state is not None:
            raise ValueError("it changes an object that is none, or for the second time")
        target.state = state

    def append(self, values: tuple[Any, ...]) -> None:
        """Append values to the list below them."""
        target = self._top()
        if not isinstance(target, list):
            raise ValueError("it appends to what is no list")
        target.extend(values)

    def set_items(self, values: tuple[Any, ...]) -> None:
        """Put keys and values into the dictionary below them."""
        target = self._top()
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("it puts keys into what is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # A tuple of tuples of tuples would be hashed by recursion in C, without end.
            if not isinstance(key, str | int):
                raise ValueError("a key in it is neither text nor number")
            target[key] = value


_FRAMES = {"PROTO", "FRAME", "STOP"}
_PUSHED = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_PUTS = {"BINPUT", "LONG_BINPUT"}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda machine, _: machine.push(_MARK),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MEMOIZE": lambda machine, _: machine.memoize(),
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.push(machine.pop_many(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.pop_many(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.pop_many(3)),
    "TUPLE": lambda machine, _: machine.push(machine.pop_marked()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "APPEND": lambda machine, _: machine.append(machine.pop_many(1)),
    "APPENDS": lambda machine, _: machine.append(machine.pop_marked()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop_many(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_marked()),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": lambda machine, _: machine.name_of_stack(),
    "REDUCE": lambda machine, _: machine.reduce(),
    "NEWOBJ": lambda machine, _: machine.new_object(),
    "BUILD": lambda machine, _: machine.build(),
}
