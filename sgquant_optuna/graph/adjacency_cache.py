"""A cache of the matrices that are made of a model's edges, found again by equal edges."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

Adjacency = TypeVar("Adjacency")

_MAX_ADJACENCIES = 8
"""A model that draws new edges in each forward pass must not fill the memory with them."""


class _Entry(NamedTuple, Generic[Adjacency]):
    tensors: tuple[Tensor | None, ...]
    settings: tuple[Hashable, ...]
    adjacency: Adjacency


class AdjacencyCache(Generic[Adjacency]):
    """Makes a matrix for each list of edges once, and keeps the newest eight.

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
        # Models may derive equal tensors anew in each forward pass: comparing is far cheaper
        # than sorting, and the same object needs no comparing.
        for entry in self._entries:
            if entry.settings == settings and all(map(_same, entry.tensors, tensors)):
                return entry.adjacency
        if len(self._entries) == _MAX_ADJACENCIES:
            self._entries.pop(0)
        adjacency = self._build(*tensors, *settings)
        self._entries.append(_Entry(tensors, settings, adjacency))
        return adjacency


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is other or one is None or other is None:
        return one is other
    return one.shape == other.shape and one.device == other.device and torch.equal(one, other)
