"""Values that are kept for tensors: what a quantizer computes once a graph or mini-batch."""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Value = TypeVar("Value")


class PerTensor(Generic[Value]):
    """A value for each tensor, told by identity and kept as long as the tensor lives.

    A value may not refer to its tensor, or both would stay for ever. Copies and pickles begin
    empty: the tensors of a copy are others.
    """

    def __init__(self) -> None:
        self._kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def get(self, tensor: Tensor) -> Value | None:
        """Return the value of a tensor; ``None`` if it has none."""
        found: Value | None = self._kept.get(tensor)
        return found

    def set(self, tensor: Tensor, value: Value) -> None:
        """Keep a value for a tensor."""
        self._kept[tensor] = value

    def clear(self) -> None:
        """Free all values."""
        self._kept.clear()

    def __len__(self) -> int:
        """Return the number of tensors with a value."""
        return len(self._kept)

    def __reduce__(self) -> tuple[type[PerTensor[Value]], tuple[()]]:
        """Begin copies and pickles empty."""
        return PerTensor, ()
