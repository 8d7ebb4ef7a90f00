"""The graph that a quantized model is called with, and other state that its sites share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData

from sgquant_optuna.attachment.type_names import TypeNames
from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.node_types import Graph, edge_parts, node_parts

_BOUND = ("nodes", "edges", "types", "_versions", "_recognised")


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
class BoundNodes:
    """The nodes of one type of the bound graph.

    Args:
        x:
            Features, ``[N, F]``.
        degree_bucket:
            Degree bucket of each node, ``[N]`` int64.
        num_nodes:
            Number of nodes N.
    """

    x: Tensor | None = None
    degree_bucket: Tensor | None = None
    num_nodes: int | None = None
    _spread: dict[tuple[tuple[int, ...], int], Tensor] = field(default_factory=dict)

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
        nodes:
            Nodes of the bound graph by node type, ``""`` where there is one.
        edges:
            Edges of the bound graph, ``[2, E]`` int64, of each relation.
        types:
            Node types and relations of a heterogeneous graph as the paths of layers name them.
    """

    expected: tuple[str, ...]
    num_buckets: int
    by_row: bool = False
    chosen: bool = False
    notes: tuple[str, ...] = ()
    nodes: dict[str, BoundNodes] = field(default_factory=dict)
    edges: tuple[Tensor, ...] = ()
    types: TypeNames | None = None
    used: set[str] = field(default_factory=set)
    """Names of the quantizers that the current forward pass has called."""
    observations: dict[str, list[Observation]] | None = None
    """Calls of each quantizer during calibration, otherwise ``None``."""
    changed: set[str] | None = None
    """Names of the quantizers that changed a value while sites are checked, otherwise ``None``."""
    _versions: tuple[int, ...] = ()
    _recognised: tuple[Tensor | None, int] = (None, 0)

    def __deepcopy__(self, memo: dict[int, object]) -> GraphContext:
        """Copy the state, but share the tensors of the graph: no quantizer writes to them."""
        nodes = {name: replace(of_type, _spread={}) for name, of_type in self.nodes.items()}
        return replace(self, used=set(), nodes=nodes)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load a pickle, whose tensors count their in-place changes anew."""
        self.__dict__.update(state)
        self._remember()

    def _remember(self) -> None:
        self._versions = tuple(map(version, self._columns()))
        self._recognised = (None, 0)

    def _columns(self) -> list[Tensor]:
        """Return features and edges of all types of the bound graph."""
        features = [one.x for one in self.nodes.values() if isinstance(one.x, Tensor)]
        return [*features, *self.edges]

    def of_type(self, node_type: str | None) -> BoundNodes:
        """Return the nodes of a type; without columns if it is not known."""
        if node_type is None:
            return BoundNodes()
        return self.nodes.get(node_type, BoundNodes())

    @property
    def num_nodes(self) -> int:
        """Number of nodes of all types."""
        return sum(one.num_nodes or 0 for one in self.nodes.values())

    @property
    def num_edges(self) -> int | None:
        """Number of edges of a graph with one type of them, if they are a list."""
        return self.edges[0].shape[1] if len(self.edges) == 1 and self.types is None else None

    @property
    def is_by_node(self) -> bool:
        """Whether quantization depends on which node is in which row."""
        return self.num_buckets > 1 or self.by_row

    def bind(self, data: Graph) -> None:
        """Take the columns of a graph.

        Raises:
            GraphError:
                If ``degree_bucket`` is needed and missing, or out of range.
        """
        nodes = {name: self._bound_nodes(name, part) for name, part in node_parts(data).items()}
        edges = [part.get("edge_index") for part in edge_parts(data).values()]
        self.nodes, self.edges = nodes, tuple(one for one in edges if isinstance(one, Tensor))
        self.types = TypeNames(data.metadata()) if isinstance(data, HeteroData) else None
        self._remember()

    def bound(self) -> dict[str, Any]:
        """Return what :meth:`bind` has set, for :meth:`bind_again`."""
        return {name: getattr(self, name) for name in _BOUND}

    def bind_again(self, bound: Mapping[str, Any]) -> None:
        """Take the graph that was bound before."""
        self.__dict__.update(bound)

    def _bound_nodes(self, name: str, part: Any) -> BoundNodes:
        x, bucket = part.get("x"), None
        if self.num_buckets > 1:
            bucket = self._checked_bucket(name, part.get("degree_bucket"))
        known = x if x is not None else bucket
        return BoundNodes(x, bucket, part.num_nodes if known is None else known.shape[0])

    def _checked_bucket(self, name: str, bucket: Tensor | None) -> Tensor:
        of = f" of {name}" if name else ""
        if bucket is None:
            raise GraphError(
                f"column degree_bucket{of}: expected one for each node, got none; apply "
                f"AddDegreeBuckets() to the graph first"
            )
        highest = int(bucket.max()) if len(bucket) else 0
        if highest >= self.num_buckets:
            raise GraphError(
                f"column degree_bucket{of}: expected values below {self.num_buckets}, got "
                f"{highest}; attach with as many buckets as the transform makes"
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
        if not self.is_by_node or not any(one.x is not None for one in self.nodes.values()):
            return
        given = [*args, *kwargs.values()]
        for data in [value for value in given if isinstance(value, Data | HeteroData)]:
            if self.num_buckets > 1 and self._has_other_buckets(data):
                self.bind(data)
                return
        tensors = list(_tensors(given))
        counts = {one.num_nodes for one in self.nodes.values()}
        features = [one for one in tensors if one.is_floating_point() and one.dim() > 1]
        features = [one for one in features if one.shape[0] in counts]
        edges = [one for one in tensors if one.dtype == torch.long and one.dim() == 2]
        if features and not self._recognises(features, edges):
            raise GraphError(
                f"graph: expected the one that is bound to the model, got other features and "
                f"other edges of {self.num_nodes} nodes too, whose degrees differ; call "
                f"bind(model, data) with the graph that is forwarded"
            )

    def _has_other_buckets(self, data: Graph) -> bool:
        buckets = {name: part.get("degree_bucket") for name, part in node_parts(data).items()}
        return all(one is not None for one in buckets.values()) and any(
            one is not self.of_type(name).degree_bucket for name, one in buckets.items()
        )

    def _recognises(self, features: Sequence[Tensor], edges: Sequence[Tensor]) -> bool:
        bound = [
            (known, features if known.is_floating_point() else edges, known_version)
            for known, known_version in zip(self._columns(), self._versions, strict=True)
        ]
        for known, found, known_version in bound:
            if any(one is known and version(one) == known_version for one in found):
                return True
        last, last_version = self._recognised
        if any(one is last and version(one) == last_version for one in (*features, *edges)):
            return True
        for known, found, known_version in bound:
            if version(known) != known_version:
                continue
            for one in found:
                if one.shape == known.shape and torch.equal(one, known):
                    self._recognised = (one, version(one))
                    return True
        return False


def version(x: Tensor | None) -> int:
    """Return the counter of in-place changes of a tensor; 0 if it has none."""
    try:
        return 0 if x is None else x._version
    except RuntimeError:  # made in inference mode
        return 0


def _tensors(given: Iterable[Any]) -> Iterator[Tensor]:
    for value in given:
        if isinstance(value, Data | HeteroData):
            yield from _tensors([part.get("x") for part in node_parts(value).values()])
            yield from _tensors([part.get("edge_index") for part in edge_parts(value).values()])
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(value, Tensor) and value.layout == torch.strided:
            yield value
