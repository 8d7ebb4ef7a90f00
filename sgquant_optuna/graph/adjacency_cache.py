"""A cache of the matrices that are made of a model's edges, found again by equal edges.

Edges are told apart by their values. A tensor that was written to since is another list of edges,
even where it is the same object: PyTorch counts the writes to each tensor. It does not count those
through ``tensor.data`` or an array of NumPy that shares the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Adjacency = TypeVar("Adjacency")

_MAX_ADJACENCIES = 8
"""A model that draws new edges in each forward pass must not fill the memory with them."""


class AdjacencyCache(Generic[Adjacency]):
    """Makes a matrix for each list of edges once, and keeps the eight that were used last.

    Args:
        build:
            Function that makes a matrix from tensors and settings, in that order.
    """

    def __init__(self, build: Callable[..., Adjacency]) -> None:
        self._build = build
        self._entries: list[_Entry[Adjacency]] = []

    def get(self, tensors: tuple[Tensor | None, ...], *settings: Hashable) -> Adjacency:
        """Return the matrix of edges, made now or before.

        Args:
            tensors:
                Edges, ``[2, E]``, and what else of each edge the matrix is made of.
            settings:
                Plain values that the matrix depends on too.
        """
        entries = [entry for entry in self._entries if entry.is_unchanged()]
        found = _find(entries, tensors, settings)
        if found is None:
            found = _Entry(tensors, settings, self._build(*tensors, *settings))
        others = [entry for entry in entries if entry is not found]
        # One assignment, so that another thread never finds half a list.
        self._entries = [*others, found][-_MAX_ADJACENCIES:]
        return found.adjacency


class FirstAdjacencies(Generic[Adjacency]):
    """The first eight lists of edges that a model is called with, and no other.

    Edges that change in every forward pass would be sorted in vain. Which lists have a matrix
    depends on the calls alone, and not on what the cache holds: sums in another order differ in
    their last bit, and a result must not depend on what ran before it.

    Args:
        cache:
            Cache that the matrices are taken from.
    """

    def __init__(self, cache: AdjacencyCache[Adjacency]) -> None:
        self._cache = cache
        self._entries: list[_Entry[Adjacency]] = []
        self._left = _MAX_ADJACENCIES

    def get(self, tensors: tuple[Tensor | None, ...], *settings: Hashable) -> Adjacency | None:
        """Return the matrix of edges, or ``None`` for a list beyond the first eight."""
        if not all(entry.is_unchanged() for entry in self._entries):
            self._entries = [entry for entry in self._entries if entry.is_unchanged()]
        found = _find(self._entries, tensors, settings)
        if found is None:
            if not self._left:
                return None
            self._left -= 1
            found = _Entry(tensors, settings, self._cache.get(tensors, *settings))
            self._entries.append(found)
        return found.adjacency


class _Entry(Generic[Adjacency]):
    def __init__(
        self,
        tensors: tuple[Tensor | None, ...],
        settings: tuple[Hashable, ...],
        adjacency: Adjacency,
    ) -> None:
        self._tensors = tuple(map(_countable, tensors))
        self._states = tuple(map(_state, self._tensors))
        self._settings = settings
        self.adjacency = adjacency

    def is_unchanged(self) -> bool:
        """Whether nobody wrote to the tensors since the matrix was made."""
        return all(
            _state(tensor) == state
            for tensor, state in zip(self._tensors, self._states, strict=True)
        )

    def is_of(self, tensors: tuple[Tensor | None, ...], settings: tuple[Hashable, ...]) -> bool:
        # Models may derive equal tensors anew in each forward pass: comparing is far cheaper
        # than sorting, and the same object needs no comparing.
        return self._settings == settings and all(map(_same, self._tensors, tensors))


def _find(
    entries: list[_Entry[Adjacency]],
    tensors: tuple[Tensor | None, ...],
    settings: tuple[Hashable, ...],
) -> _Entry[Adjacency] | None:
    return next((entry for entry in entries if entry.is_of(tensors, settings)), None)


def _countable(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor whose writes are counted, or a copy that nobody else can write to."""
    return tensor.clone() if tensor is not None and tensor.is_inference() else tensor


def _state(tensor: Tensor | None) -> Hashable:
    if tensor is None or tensor.is_inference():
        return None
    return tensor._version, tensor.data_ptr(), tensor.shape


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is other or one is None or other is None:
        return one is other
    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and one.device == other.device
        and torch.equal(one, other)
    )
