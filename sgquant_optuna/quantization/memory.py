"""Bytes of an assignment of bit widths, by arithmetic on element counts alone.

Two accountings stand side by side, because the paper's leaves out what really has to be stored:

* ``paper``: dense node features only, ``sum(N * F * bits) / 8`` over the layer inputs. With 32
  bits everywhere this is the formula ``N * (F + W) * 4`` behind the paper's Table III.
* ``honest``: packed bytes of embeddings and attention with the padding of each row, the scale and
  zero point of every range, and the degree bucket of every node. The graph's own features are
  counted in the smallest store that holds them (:mod:`sgquant_optuna.quantization.input_stores`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sgquant_optuna.quantization.input_stores import (
    RANGE_BYTES,
    InputContent,
    input_stores,
    packed_rows_nbytes,
)
from sgquant_optuna.quantization.layout import bits_for, integers_nbytes, packed_nbytes
from sgquant_optuna.quantization.sites import FULL_PRECISION, BitWidths, Site


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
        content:
            What the values are, where the site holds the graph's own features; else ``None``.
    """

    num_rows: int
    num_columns: int
    num_ranges: int = 1
    content: InputContent | None = None

    @property
    def num_elements(self) -> int:
        """Number of stored values."""
        return self.num_rows * self.num_columns

    @classmethod
    def from_dict(cls, size: Mapping[str, Any]) -> SiteSize:
        """Read what ``dataclasses.asdict`` wrote."""
        content = size.get("content")
        return cls(
            **{**size, "content": None if content is None else InputContent.from_dict(content)}
        )


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
        sizes = {
            Site.parse(name): SiteSize.from_dict(size) for name, size in layout["sizes"].items()
        }
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
    stored = sum(site_store(site, size, bits[site])[1] for site, size in layout.sizes.items())
    return Memory(
        memory_bytes=float(stored + bucket_nbytes(layout)),
        full_precision_bytes=4.0 * sum(size.num_elements for size in layout.sizes.values()),
    )


def exact_input_memory(layout: FeatureLayout, bits: BitWidths) -> Memory:
    """Count as :func:`honest_memory` does, against a float32 model with its input stored smartly.

    A saving against dense float32 includes what any lossless store of a sparse or binary input
    saves; this baseline leaves that out.
    """
    full = sum(site_store(site, size, FULL_PRECISION)[1] for site, size in layout.sizes.items())
    return Memory(honest_memory(layout, bits).memory_bytes, float(full))


def bucket_nbytes(layout: FeatureLayout) -> int:
    """Bytes of the degree bucket of every node, stored once and shared by all layers."""
    return integers_nbytes(layout.num_nodes, bits_for(layout.num_buckets - 1))


def site_store(site: Site, size: SiteSize, bit_width: int) -> tuple[str, int]:
    """Return the smallest store of a site at a width, and its bytes.

    Returns:
        ``"rows"``, or for the graph's own features any of :func:`.input_stores`; then its bytes,
        ranges included.
    """
    if size.content is not None:
        stores = input_stores(
            size.num_rows, size.num_columns, bit_width, size.num_ranges, size.content
        )
        name = min(stores, key=lambda store: stores[store])
        return name, stores[name]
    if site.component == "attention" and bit_width != FULL_PRECISION:
        # Consumed in edge order, so it is one run without padding.
        packed = packed_nbytes(1, size.num_elements, bit_width)
        return "rows", packed + RANGE_BYTES * size.num_ranges
    return "rows", packed_rows_nbytes(size.num_rows, size.num_columns, bit_width, size.num_ranges)


def exact_inputs(layout: FeatureLayout, candidates: Sequence[int]) -> dict[Site, int]:
    """Find the input sites that no trial need be spent on: keeping them exactly is as small.

    Args:
        layout:
            Every site with its size.
        candidates:
            Widths that would be searched.

    Returns:
        Such sites with the smallest width that changes none of their values.
    """
    exact = {}
    for site, size in layout.sizes.items():
        if size.content is None:
            continue
        nbytes = {
            width: site_store(site, size, width)[1] for width in {*candidates, FULL_PRECISION}
        }
        lossless = [width for width in nbytes if width in (*size.content.lossless, FULL_PRECISION)]
        best = min(lossless, key=lambda width: (nbytes[width], width))
        if nbytes[best] <= min(nbytes[width] for width in candidates):
            exact[site] = best
    return exact
