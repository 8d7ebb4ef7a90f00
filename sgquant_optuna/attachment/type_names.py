"""Node types and relations in the paths of layers, and readable names of features by type.

``to_hetero`` and ``HeteroConv`` make a convolution for each relation:
``conv1.author__writes__paper`` or ``conv1.convs.<author___writes___paper>``. All of them take the
features of a node type at ``conv1``, which are stored once: their site is ``conv1.author``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sgquant_optuna.attachment.layer_arguments import ROOT
from sgquant_optuna.graph.node_types import keys_of

_CONTAINER = "convs"
"""Module of ``HeteroConv`` that holds the convolutions of all relations."""


class Place(NamedTuple):
    """The place of a layer in a model for several node types.

    Args:
        group:
            Path without relation or node type: ``conv1``. Layers of one group share features.
        source:
            Node type of the features, or those of the sources; ``None`` if the path tells none.
        target:
            Node type of the features of the targets.
    """

    group: str
    source: str | None = None
    target: str | None = None

    def site(self, node_type: str) -> str:
        """Return the name of the layer in the site of the features of a node type."""
        return f"{self.group or ROOT}.{node_type}"


class TypeNames:
    """Node types and relations as the paths of layers name them.

    Args:
        metadata:
            Node types and relations of a graph, ``HeteroData.metadata()``.
    """

    def __init__(self, metadata: tuple[Sequence[str], Sequence[tuple[str, str, str]]]) -> None:
        self.node_types = tuple(metadata[0])
        self._places: dict[str, tuple[str, str]] = {}
        for name in self.node_types:
            self._places |= dict.fromkeys(keys_of(name), (name, name))
        for relation in metadata[1]:
            self._places |= dict.fromkeys(keys_of(relation), (relation[0], relation[2]))

    def place(self, path: str) -> Place:
        """Return the place of a layer, by the last part of its path that names a type."""
        parts = path.split(".")
        for at in reversed(range(len(parts))):
            ends = self._places.get(parts[at])
            if ends is not None:
                before = parts[:at]
                if before and before[-1] == _CONTAINER and parts[at].startswith("<"):
                    before = before[:-1]
                return Place(".".join([*before, *parts[at + 1 :]]), *ends)
        return Place(path)
