"""Bytes of an assignment of bit widths, by arithmetic on element counts alone.

Two accountings stand side by side, because the paper's leaves out what really has to be stored:

* ``paper``: dense node features only, ``sum(N * F * bits) / 8`` over the layer inputs. With 32
  bits everywhere this is the formula ``N * (F + W) * 4`` behind the paper's Table III.
* ``honest``: packed bytes of embeddings and attention with the padding of each row, the scale and
  zero point of every range, and the degree bucket of every node.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sgquant_optuna.bit_widths import FULL_PRECISION, BitWidths, Site
from sgquant_optuna.quantization.layout import packed_nbytes

RANGE_BYTES = 8
"""One scale and one zero point, float32 each."""


@dataclass(frozen=True)
class SiteSize:
    """How much one site holds.

    Args:
        num_rows:
            Nodes (embedding) or edges (attention).
        num_columns:
            Features F (embedding) or heads H (attention).
        num_ranges:
            Pairs of scale and zero point that the site stores when it is quantized.
    """

    num_rows: int
    num_columns: int
    num_ranges: int = 1

    @property
    def num_elements(self) -> int:
        """Number of stored values."""
        return self.num_rows * self.num_columns


@dataclass(frozen=True)
class FeatureLayout:
    """Every site of a model on one graph, with its size.

    Args:
        sizes:
            Size of each site, in the order of the forward pass.
        num_nodes:
            Nodes N of the graph.
        num_buckets:
            Degree buckets B; 1 where widths do not depend on the degree.
    """

    sizes: Mapping[Site, SiteSize]
    num_nodes: int
    num_buckets: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return the layout, ready for JSON."""
        return {
            "num_nodes": self.num_nodes,
            "num_buckets": self.num_buckets,
            "sizes": {str(site): asdict(size) for site, size in self.sizes.items()},
        }

    @classmethod
    def from_dict(cls, layout: Mapping[str, Any]) -> FeatureLayout:
        """Read what ``to_dict`` wrote."""
        sizes = {Site.parse(name): SiteSize(**size) for name, size in layout["sizes"].items()}
        return cls(sizes, layout["num_nodes"], layout["num_buckets"])


@dataclass(frozen=True)
class Memory:
    """What one accounting says of an assignment, against float32 of the same elements."""

    memory_bytes: float
    full_precision_bytes: float

    @property
    def saving(self) -> float:
        """How many times smaller than float32 (the paper's 31.9x)."""
        return self.full_precision_bytes / self.memory_bytes if self.memory_bytes else 1.0

    @property
    def average_bits(self) -> float:
        """Stored bits per value."""
        return FULL_PRECISION / self.saving


def paper_memory(layout: FeatureLayout, bits: BitWidths) -> Memory:
    """Count the dense node features alone, as the paper's Table III does.

    Raises:
        KeyError:
            If ``bits`` lacks a site of the layout.

    Reference:
        SGQuant, Table III: ``MB = N * (F + W) * 4 / 1e6`` with W the sum of the hidden widths.
    """
    elements = {
        site: size.num_elements
        for site, size in layout.sizes.items()
        if site.component == "embedding"
    }
    return Memory(
        memory_bytes=sum(count * bits[site] for site, count in elements.items()) / 8,
        full_precision_bytes=4.0 * sum(elements.values()),
    )


def honest_memory(layout: FeatureLayout, bits: BitWidths) -> Memory:
    """Count every byte that packed embeddings and attention need.

    Raises:
        KeyError:
            If ``bits`` lacks a site of the layout.
    """
    stored = sum(_site_nbytes(site, size, bits[site]) for site, size in layout.sizes.items())
    return Memory(
        memory_bytes=float(stored + bucket_nbytes(layout)),
        full_precision_bytes=4.0 * sum(size.num_elements for size in layout.sizes.values()),
    )


def bucket_nbytes(layout: FeatureLayout) -> int:
    """Bytes of the degree bucket of every node, stored once and shared by all layers."""
    if layout.num_buckets == 1:
        return 0
    return math.ceil(layout.num_nodes * math.ceil(math.log2(layout.num_buckets)) / 8)


def _site_nbytes(site: Site, size: SiteSize, bit_width: int) -> int:
    if bit_width == FULL_PRECISION:
        return 4 * size.num_elements
    if site.component == "attention":  # consumed in edge order, so it is one run without padding
        packed = packed_nbytes(1, size.num_elements, bit_width)
    else:
        packed = packed_nbytes(size.num_rows, size.num_columns, bit_width)
    return packed + RANGE_BYTES * size.num_ranges
