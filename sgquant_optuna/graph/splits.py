"""Graphs with several splits: masks ``[N, S]``, of which one is chosen, or all are measured."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from torch_geometric.data import HeteroData

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.columns import MASKS
from sgquant_optuna.graph.node_types import Graph, node_parts
from sgquant_optuna.graph.split_choice import Split, check_split

_CHOSEN = "chosen_split"


def num_splits(data: Graph) -> int:
    """Return the number of splits S of a graph; 1 for masks ``[N]``.

    Raises:
        GraphError:
            If its masks differ in their number of splits.
    """
    found = {name: mask.shape[1] for part, name, mask in _masks_of_splits(data)}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{count} in {name}" for name, count in found.items())
        raise GraphError(f"masks: expected the same number of splits in all, got {told}")
    return next(iter(found.values()), 1)


def has_splits(data: Graph) -> bool:
    """Tell whether a mask of a graph holds splits, ``[N, S]``."""
    return bool(_masks_of_splits(data))


def _masks_of_splits(data: Graph) -> list[tuple[Any, str, Tensor]]:
    """Return the masks that hold splits, with the columns of their nodes and their name."""
    return [
        (part, name, part[name])
        for part in node_parts(data).values()
        for name in MASKS
        if isinstance(part.get(name), Tensor) and part[name].dim() == 2
    ]


def split_of(data: Graph) -> int | None:
    """Return the number of the split that was chosen; ``None`` if there was no choice."""
    columns: Any = data._global_store if isinstance(data, HeteroData) else data
    chosen = columns.get(_CHOSEN)
    return chosen if isinstance(chosen, int) else None


def choose_split(data: Graph, split: int) -> Graph:
    """Return a copy of a graph with one of its splits.

    Args:
        data:
            Graph with masks ``[N, S]``, as PyG's WebKB and Actor have; a ``test_mask`` ``[N]`` is
            shared by all.
        split:
            Number of the split, from 0 to S - 1.

    Returns:
        Copy with masks ``[N]``, whose ``chosen_split`` is the number.

    Raises:
        GraphError:
            If the graph has no such split.
        ValueError:
            If it is no number of a split.
    """
    if not isinstance(split, int):
        raise ValueError(f"split: expected the number of one, got {split!r}")
    check_split(split)
    if not has_splits(data):
        if split_of(data) == split:
            return data
        chosen = split_of(data)
        got = "one split" if chosen is None else f"split {chosen} that was chosen before"
        raise GraphError(f"masks: expected splits [N, S] to choose split {split} of, got {got}")
    count = num_splits(data)
    if split >= count:
        raise GraphError(f"split: expected a number from 0 to {count - 1}, got {split}")
    chosen_one = copy.copy(data)
    for part, name, mask in _masks_of_splits(chosen_one):
        part[name] = mask[:, split].contiguous()
    setattr(chosen_one, _CHOSEN, split)
    return chosen_one


def split_graphs(data: Graph, split: Split | None) -> list[Graph]:
    """Return the graph with masks ``[N]``, once for each split that is meant.

    Args:
        data:
            Graph with masks ``[N]`` or ``[N, S]``.
        split:
            Number of a split, ``"all"``, or ``None`` for a graph without a choice.

    Raises:
        GraphError:
            If the graph has no such split, or only one where all are meant.
    """
    if split is None:
        return [data]  # the check of the task tells what to do with several
    if split != "all":
        return [choose_split(data, split)]
    if not has_splits(data):
        raise GraphError("masks: expected splits [N, S] for split='all', got one split")
    return [choose_split(data, one) for one in range(num_splits(data))]
