"""The graph that a quantized model is called with, and other state that its sites share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from sgquant_optuna.exceptions import GraphError

_BOUND = ("x", "edge_index", "degree_bucket", "num_nodes", "_versions", "_recognised", "_spread")


@dataclass(frozen=True, eq=False)  # `==` of tensors is elementwise
class Observation:
    """One call of a quantizer during calibration.

    Args:
        x:
            Values of the site, ``[N, F]``, with further leading dimensions or ``[E, H]``.
        node_dim:
            Dimension of ``x`` that counts the nodes.
        quantizer:
            Module that was called.
    """

    x: Tensor
    node_dim: int
    quantizer: nn.Module


@dataclass(eq=False)
class GraphContext:
    """State that all quantizers of one model share.

    Args:
        expected:
            Names of the quantizers that each forward pass must reach, ``layer/component``.
        num_buckets:
            Number of degree buckets B.
        by_row:
            Whether each node has a range of its own (axis ``"row"``).
        chosen:
            Whether the user named the layers, so that none may be left out.
        notes:
            Lines on what is neither quantized nor counted.
        x:
            Features of the bound graph, ``[N, F]``.
        edge_index:
            Edges of the bound graph, ``[2, E]`` int64.
        degree_bucket:
            Degree bucket of each node of the bound graph, ``[N]`` int64.
        num_nodes:
            Number of nodes N of the bound graph.
    """

    expected: tuple[str, ...]
    num_buckets: int
    by_row: bool = False
    chosen: bool = False
    notes: tuple[str, ...] = ()
    x: Tensor | None = None
    edge_index: Tensor | None = None
    degree_bucket: Tensor | None = None
    num_nodes: int | None = None
    used: set[str] = field(default_factory=set)
    """Names of the quantizers that the current forward pass has called."""
    observations: dict[str, list[Observation]] | None = None
    """Calls of each quantizer during calibration, otherwise ``None``."""
    changed: set[str] | None = None
    """Names of the quantizers that changed a value while sites are checked, otherwise ``None``."""
    _versions: tuple[int, int] = (0, 0)
    _recognised: tuple[Tensor | None, int] = (None, 0)
    _spread: dict[tuple[tuple[int, ...], int], Tensor] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, object]) -> GraphContext:
        """Copy the state, but share the tensors of the graph: no quantizer writes to them."""
        return replace(self, used=set(), _spread={})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load a pickle, whose tensors count their in-place changes anew."""
        self.__dict__.update(state)
        self._versions = (version(self.x), version(self.edge_index))
        self._recognised = (None, 0)

    @property
    def is_by_node(self) -> bool:
        """Whether quantization depends on which node is in which row."""
        return self.num_buckets > 1 or self.by_row

    def bind(self, data: Data) -> None:
        """Take the columns of a graph.

        Raises:
            GraphError:
                If ``degree_bucket`` is needed and missing, or out of range.
        """
        bucket = None if self.num_buckets == 1 else self._checked_bucket(data)
        edge_index = data.get("edge_index")
        self.x, self.degree_bucket = data.get("x"), bucket
        self.edge_index = edge_index if isinstance(edge_index, Tensor) else None
        known = self.x if self.x is not None else bucket
        self.num_nodes = data.num_nodes if known is None else known.shape[0]
        self._versions = (version(self.x), version(self.edge_index))
        self._recognised = (None, 0)
        self._spread = {}

    def bound(self) -> dict[str, Any]:
        """Return what :meth:`bind` has set, for :meth:`bind_again`."""
        return {name: getattr(self, name) for name in _BOUND}

    def bind_again(self, bound: Mapping[str, Any]) -> None:
        """Take the graph that was bound before."""
        self.__dict__.update(bound)

    def _checked_bucket(self, data: Data) -> Tensor:
        bucket: Tensor | None = data.get("degree_bucket")
        if bucket is None:
            raise GraphError(
                "column degree_bucket: expected one for each node, got none; apply "
                "AddDegreeBuckets() to the graph first"
            )
        highest = int(bucket.max()) if len(bucket) else 0
        if highest >= self.num_buckets:
            raise GraphError(
                f"column degree_bucket: expected values below {self.num_buckets}, got {highest}; "
                f"attach with as many buckets as the transform makes"
            )
        return bucket

    def note(self, line: str) -> None:
        """Add a line to the notes, once."""
        if line not in self.notes:
            self.notes += (line,)

    def check_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Refuse a call with another graph than the bound one, or bind it where it is given whole.

        A call may have other features (noise, dropout) or other edges (dropped ones) than the
        bound graph. If both differ, its nodes are others, and so are their degree buckets.

        Args:
            args:
                Positional arguments of the model.
            kwargs:
                Keyword arguments of the model.

        Raises:
            GraphError:
                If neither the features nor the edges are those of the bound graph.
        """
        if not self.is_by_node or not isinstance(self.x, Tensor):
            return
        given = [*args, *kwargs.values()]
        for data in [value for value in given if isinstance(value, Data)]:
            bucket = data.get("degree_bucket")
            if bucket is not None and bucket is not self.degree_bucket and self.num_buckets > 1:
                self.bind(data)
                return
        tensors = list(_tensors(given))
        features = [one for one in tensors if one.is_floating_point() and one.dim() > 1]
        features = [one for one in features if one.shape[0] == self.num_nodes]
        edges = [one for one in tensors if one.dtype == torch.long and one.dim() == 2]
        if features and not self._recognises(features, edges):
            raise GraphError(
                f"graph: expected the one that is bound to the model, got other features and "
                f"other edges of {self.num_nodes} nodes too, whose degrees differ; call "
                f"bind(model, data) with the graph that is forwarded"
            )

    def _recognises(self, features: Sequence[Tensor], edges: Sequence[Tensor]) -> bool:
        bound = (
            (self.x, features, self._versions[0]),
            (self.edge_index, edges, self._versions[1]),
        )
        for known, found, known_version in bound:
            if any(one is known and version(one) == known_version for one in found):
                return True
        last, last_version = self._recognised
        if any(one is last and version(one) == last_version for one in (*features, *edges)):
            return True
        for known, found, known_version in bound:
            if known is None or version(known) != known_version:
                continue
            for one in found:
                if one.shape == known.shape and torch.equal(one, known):
                    self._recognised = (one, version(one))
                    return True
        return False

    def buckets_of(self, x: Tensor, node_dim: int) -> Tensor | None:
        """Return the degree bucket of each row of ``x`` with its leading dimensions flattened.

        Args:
            x:
                Features, ``[N, F]``, or with further leading dimensions.
            node_dim:
                Dimension that counts the nodes, if its size is N.

        Returns:
            Buckets ``[N]`` for a matrix, whatever its rows are; ``[rows]`` for more dimensions,
            or ``None`` if none of them counts the nodes.
        """
        bucket = self.degree_bucket
        if bucket is None or x.dim() <= 2:
            return bucket
        leading = tuple(x.shape[:-1])
        dims = [dim for dim in (node_dim % x.dim(), 0, len(leading) - 1) if dim < len(leading)]
        dim = next((dim for dim in dims if leading[dim] == len(bucket)), None)
        if dim is None:
            return None
        key = (leading, dim)
        if key not in self._spread:  # one tensor for each shape: quantizers tell it by identity
            shape = [1] * len(leading)
            shape[dim] = -1
            self._spread[key] = bucket.view(shape).expand(leading).reshape(-1)
        return self._spread[key]


def version(x: Tensor | None) -> int:
    """Return the counter of in-place changes of a tensor; 0 if it has none."""
    try:
        return 0 if x is None else x._version
    except RuntimeError:  # made in inference mode
        return 0


def _tensors(given: Sequence[Any]) -> Iterator[Tensor]:
    for value in given:
        if isinstance(value, Data):
            yield from _tensors([value.get("x"), value.get("edge_index")])
        elif isinstance(value, Tensor) and value.layout == torch.strided:
            yield value
