"""Graphs as users have them: lists, data sets and loaders, read and checked to be joined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
)
from torch_geometric.data import Data

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.columns import MASKS

Graphs = Iterable[Data] | DataLoader[Any]
"""Graphs of a split: a list, a data set, or a loader, of which the batch size is used."""
Places = Sequence[int] | Tensor
"""Graphs of a split by their numbers in a data set, or as a mask, ``[G]`` bool."""


def graph_lists(given: Sequence[Graphs | None]) -> dict[str, list[Data]]:
    """Return the graphs of training, validation and test by the name of their mask.

    Args:
        given:
            Graphs of each split; those of the test set may be ``None``.

    Raises:
        GraphError:
            If a split is empty, no list of graphs, or a loader that does not say its graphs.
    """
    parts = {}
    for name, graphs in zip(MASKS, given, strict=True):
        if graphs is None and name == "test_mask":
            continue
        parts[name] = _graph_list(graphs, f"graphs of {name}")
    return parts


def batch_size_of(graphs: object) -> int | None:
    """Return the batch size of a loader; ``None`` if it has none, or this is no loader."""
    return graphs.batch_size if isinstance(graphs, DataLoader) else None


def picked(
    graphs: Graphs, train: Places, val: Places, test: Places | None
) -> list[list[Data] | None]:
    """Return the graphs of each split, which numbers or masks tell.

    Raises:
        GraphError:
            If a place is none of the graphs, or in two splits.
    """
    known = _graph_list(graphs, "graphs")
    places = [
        None if one is None else _numbers(one, name, len(known))
        for name, one in zip(("train", "val", "test"), (train, val, test), strict=True)
    ]
    all_places = [at for one in places if one is not None for at in one]
    twice = len(all_places) - len(set(all_places))
    if twice:
        raise GraphError(
            f"graphs of train, val and test: expected each graph once, got {twice} of them again"
        )
    return [None if one is None else [known[at] for at in one] for one in places]


def _numbers(places: Places, name: str, count: int) -> list[int]:
    try:
        wanted = torch.as_tensor(places)
    except (TypeError, ValueError, RuntimeError):
        raise GraphError(
            f"graphs of {name}: expected numbers or a mask of the given graphs, got a "
            f"{type(places).__name__}"
        ) from None
    if wanted.shape == (0,):
        return []
    if wanted.dtype == torch.bool and wanted.shape == (count,):
        return list(wanted.nonzero().flatten().tolist())
    if wanted.dim() != 1 or wanted.dtype == torch.bool or wanted.is_floating_point():
        got = f"{str(wanted.dtype).removeprefix('torch.')} {list(wanted.shape)}"
        raise GraphError(
            f"graphs of {name}: expected numbers of graphs, int64 [n], or a mask, bool [{count}], "
            f"got {got}"
        )
    numbers: list[int] = wanted.tolist()
    if numbers and not (0 <= min(numbers) and max(numbers) < count):
        raise GraphError(
            f"graphs of {name}: expected numbers from 0 to {count - 1}, got {min(numbers)} to "
            f"{max(numbers)}"
        )
    return numbers


def _graph_list(graphs: object, name: str) -> list[Data]:
    if isinstance(graphs, DataLoader):
        graphs = _graphs_of_loader(graphs, name)
    if isinstance(graphs, Data):
        graphs = [graphs]
    try:
        found: list[Any] = list(graphs)  # type: ignore[call-overload]
    except TypeError:
        raise GraphError(
            f"{name}: expected a list, a data set or a loader of graphs, got "
            f"{type(graphs).__name__}"
        ) from None
    other = [one for one in found if not isinstance(one, Data)]
    if other:
        hint = "; give the graphs themselves" if isinstance(other[0], Sequence) else ""
        raise GraphError(
            f"{name}: expected torch_geometric.data.Data, got {type(other[0]).__name__}{hint}"
        )
    if not found:
        raise GraphError(f"{name}: expected at least one, got none")
    return found


def _graphs_of_loader(loader: DataLoader[Any], name: str) -> object:
    """Return the graphs of a loader without drawing from the random state, as its epochs do."""
    if isinstance(loader.dataset, IterableDataset):
        raise GraphError(
            f"{name}: expected a loader with a length, got one over an endless or unknown number "
            f"of graphs (IterableDataset); give a list of the graphs"
        )
    sampler = loader.sampler
    data: Any = loader.dataset
    if isinstance(sampler, SubsetRandomSampler):
        return [data[at] for at in sampler.indices]
    is_plain = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(data)
    )
    if not is_plain or loader.batch_size is None:
        kind = type(loader.batch_sampler if loader.batch_size is None else sampler).__name__
        raise GraphError(
            f"{name}: expected a loader that gives each of its graphs once an epoch, got one with "
            f"a {kind}; give a list of the graphs, and the task its batch_size"
        )
    return [data[at] for at in range(len(data))]


def check_alike(parts: dict[str, list[Data]], target: str | None = None) -> None:
    """Check that graphs can be joined.

    Args:
        parts:
            Graphs by the name of their mask.
        target:
            Name of the column with one row for each graph, if there is one.

    Raises:
        GraphError:
            If one has no nodes, features, edges or target, or another number of features or
            another shape of targets than the first.
    """
    first = next(iter(parts.values()))[0]
    for name, graphs in parts.items():
        for number, graph in enumerate(graphs):
            where = f"graphs of {name}, number {number}"
            _check_features_and_edges(graph, first, where)
            if target is not None:
                _check_target(graph, first, target, where)


def _check_features_and_edges(graph: Data, first: Data, where: str) -> None:
    x, edges = graph.get("x"), graph.get("edge_index")
    if not isinstance(x, Tensor) or x.dim() != 2:
        got = "none" if not isinstance(x, Tensor) else f"{list(x.shape)}"
        raise GraphError(
            f"{where}: column x: expected features [nodes, F], got {got}; give each node some, "
            f"for instance its degree (torch_geometric.transforms.OneHotDegree)"
        )
    if not len(x):
        raise GraphError(f"{where}: expected at least one node, got none")
    if edges is None and graph.get("adj_t") is None:
        raise GraphError(
            f"{where}: column edge_index: expected one, got none; a graph without edges has "
            f"torch.empty(2, 0, dtype=torch.long)"
        )
    if edges is not None and edges.dtype != torch.long:
        raise GraphError(
            f"{where}: column edge_index: expected int64 [2, E], got "
            f"{str(edges.dtype).removeprefix('torch.')} {list(edges.shape)}"
        )
    if edges is not None and edges.numel():
        low, high = int(edges.min()), int(edges.max())
        if low < 0 or high >= len(x):
            # In a union it would end in another graph.
            raise GraphError(
                f"{where}: column edge_index: expected nodes from 0 to {len(x) - 1}, got {low} to "
                f"{high}"
            )
    if x.shape[1] != first.x.shape[1]:
        raise GraphError(
            f"{where}: expected the same number of features in all, got {first.x.shape[1]} and "
            f"{x.shape[1]}"
        )


def _check_target(graph: Data, first: Data, name: str, where: str) -> None:
    target = graph.get(name)
    if not isinstance(target, Tensor):
        got = "none" if target is None else f"a {type(target).__name__}"
        hint = "" if target is None else f"; data.{name} = torch.tensor([data.{name}])"
        raise GraphError(
            f"{where}: column {name}: expected a target in each graph, got {got}{hint}"
        )
    if target.dim() and len(target) != 1:
        raise GraphError(
            f"{where}: column {name}: expected one row for the graph, [1] or [1, C], got "
            f"{list(target.shape)}; data.{name} = data.{name}[None] if these are its labels"
        )
    known = first[name]
    if (target.shape, target.dtype) != (known.shape, known.dtype):
        kinds = [f"{str(y.dtype).removeprefix('torch.')} {list(y.shape)}" for y in (known, target)]
        raise GraphError(
            f"{where}: column {name}: expected the same type and shape in all, got "
            f"{' and '.join(kinds)}"
        )
