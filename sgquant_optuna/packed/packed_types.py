"""Node types in a packed model of a heterogeneous graph: which rows and which sites are whose.

The header has the field ``node_types`` then:

=========== ==================================================================================
``counts``  name and number of nodes of each type, in the order of the degree buckets, and the
            number of its features, or null if the model has none of them
``sites``   node type of each site whose rows are nodes
``unused``  arguments of layers that no score depends on, by path of the layer
``answers`` node type of the scores that the model returns
=========== ==================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from sgquant_optuna.attachment.quantized_model import site_quantizers
from sgquant_optuna.attachment.typed_inputs import UNUSED
from sgquant_optuna.exceptions import GraphError, PackingError
from sgquant_optuna.graph.node_types import ONLY_TYPE, Graph, node_parts
from sgquant_optuna.packed.checks import check_count


@dataclass(frozen=True)
class PackedTypes:
    """Node types of a packed model.

    Args:
        counts:
            Number of nodes of each type; ``""`` is the type of a graph with one.
        columns:
            Number of features of each type that the graph gives the model.
        sites:
            Node type of each site; sites of ``""`` are left out.
        unused:
            Arguments of each layer that no score depends on, by path of the layer.
        answers:
            Node type of the scores; ``None`` for a graph with one.
    """

    counts: Mapping[str, int]
    columns: Mapping[str, int]
    sites: Mapping[str, str]
    unused: Mapping[str, Sequence[str]] = field(default_factory=dict)
    answers: str | None = None

    @classmethod
    def of(cls, model: nn.Module, data: HeteroData, answers: str) -> PackedTypes:
        """Describe the node types of a fake-quantized model and its graph."""
        parts = node_parts(data)
        sites = {name: one.node_type for name, one in site_quantizers(model)}
        return cls(
            {name: int(part.num_nodes) for name, part in parts.items()},
            {name: part.x.shape[1] for name, part in parts.items() if part.get("x") is not None},
            {name: node_type for name, node_type in sites.items() if node_type in parts},
            {
                path: tuple(layer.__dict__[UNUSED])
                for path, layer in model.named_modules()
                if layer.__dict__.get(UNUSED)
            },
            answers,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the field for JSON."""
        counts = [[name, count, self.columns.get(name)] for name, count in self.counts.items()]
        unused = {path: list(arguments) for path, arguments in self.unused.items()}
        return {
            "counts": counts,
            "sites": dict(self.sites),
            "unused": unused,
            "answers": self.answers,
        }

    @classmethod
    def parse(cls, value: object, num_nodes: int) -> PackedTypes:
        """Read the field; ``None`` where there is one node type.

        Raises:
            PackingError:
                If a part is missing, of another type, or contradicts another.
        """
        if value is None:
            return cls({ONLY_TYPE: num_nodes}, {}, {})
        if not isinstance(value, dict) or not isinstance(value.get("counts"), list):
            raise PackingError(f"node_types: expected an object with counts, got {value!r:.80}")
        counts, columns = {}, {}
        for entry in value["counts"]:
            if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[0], str):
                raise PackingError(f"node_types: expected name and counts, got {entry!r:.80}")
            name, count, width = entry
            counts[name] = check_count(count, f"nodes of {name}")
            if width is not None:
                columns[name] = check_count(width, f"features of {name}")
        sites, answers = value.get("sites"), value.get("answers")
        if not isinstance(sites, dict) or any(one not in counts for one in sites.values()):
            raise PackingError(f"node_types: expected a type for each site, got {sites!r:.80}")
        if not isinstance(answers, str) or answers not in counts:
            raise PackingError(f"node_types: expected a type of the scores, got {answers!r:.80}")
        unused = value.get("unused")
        if not isinstance(unused, dict) or not all(map(_are_names, unused.values())):
            raise PackingError(f"node_types: expected unused arguments, got {unused!r:.80}")
        if sum(counts.values()) != num_nodes:
            raise PackingError(
                f"node_types: expected {num_nodes} nodes in all, got {sum(counts.values())}"
            )
        return cls(counts, columns, sites, unused, answers)

    @property
    def is_hetero(self) -> bool:
        """Whether the graph is heterogeneous."""
        return self.answers is not None

    def of_site(self, name: str) -> str:
        """Return the node type of a site; ``""`` if its rows are of no type."""
        return self.sites.get(name, ONLY_TYPE)

    def num_rows(self, name: str) -> int:
        """Return the number of nodes of the type of a site."""
        return self.counts.get(self.of_site(name), sum(self.counts.values()))

    def part(self, node_type: str, of_nodes: Tensor) -> Tensor:
        """Return the rows of a node type, of something with a row for each node of all types."""
        if node_type not in self.counts:
            return of_nodes
        names = list(self.counts)
        start = sum(self.counts[name] for name in names[: names.index(node_type)])
        return of_nodes[start : start + self.counts[node_type]]


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def buckets_of_all(data: Graph) -> Tensor:
    """Return the degree buckets of the nodes of all types, in the order of the types.

    Raises:
        GraphError:
            If a node type has none.
    """
    found = []
    for name, part in node_parts(data).items():
        bucket = part.get("degree_bucket")
        if bucket is None:
            of = f" of {name}" if name else ""
            raise GraphError(f"column degree_bucket{of}: expected one for each node, got none")
        found.append(bucket)
    return found[0] if len(found) == 1 else torch.cat(found)
