"""Graphs with several splits: masks ``[N, S]``, of which one is chosen, or all are measured."""

from __future__ import annotations

import copy

from torch import Tensor
from torch_geometric.data import Data

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.split_choice import Split, check_split

_MASKS = ("train_mask", "val_mask", "test_mask")
_CHOSEN = "chosen_split"


def num_splits(data: Data) -> int:
    """Return the number of splits S of a graph; 1 for masks ``[N]``.

    Raises:
        GraphError:
            If its masks differ in their number of splits.
    """
    columns = {name: data.get(name) for name in _MASKS}
    found = {
        name: mask.shape[1]
        for name, mask in columns.items()
        if isinstance(mask, Tensor) and mask.dim() == 2
    }
    if len(set(found.values())) > 1:
        told = ", ".join(f"{count} in {name}" for name, count in found.items())
        raise GraphError(f"masks: expected the same number of splits in all, got {told}")
    return next(iter(found.values()), 1)


def has_splits(data: Data) -> bool:
    """Tell whether a mask of a graph holds splits, ``[N, S]``."""
    masks = (data.get(name) for name in _MASKS)
    return any(isinstance(mask, Tensor) and mask.dim() == 2 for mask in masks)


def split_of(data: Data) -> int | None:
    """Return the number of the split that was chosen; ``None`` if there was no choice."""
    chosen = data.get(_CHOSEN)
    return chosen if isinstance(chosen, int) else None


def choose_split(data: Data, split: int) -> Data:
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
    for name in _MASKS:
        mask = data.get(name)
        if isinstance(mask, Tensor) and mask.dim() == 2:
            chosen_one[name] = mask[:, split].contiguous()
    chosen_one[_CHOSEN] = split
    return chosen_one


def split_graphs(data: Data, split: Split | None) -> list[Data]:
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
