"""Bytes of an assignment of bit widths, by arithmetic on element counts alone.

There are two accountings, because the paper's omits bytes that have to be stored:

* ``paper``: dense node features only, ``sum(N * F * bits) / 8`` over the layer inputs. With 32
  bits everywhere this is ``N * (F + W) * 4``, the formula behind the paper's Table III.
* ``honest``: packed bytes of embeddings and attention with the padding of each row, the scale and
  zero point of every range, and the degree bucket of every node. The graph's own features are
  counted in the smallest store that holds them (:mod:`sgquant_optuna.quantization.input_stores`).

Reference:
    SGQuant (Feng et al., 2020, arXiv:2007.05100), Table III.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgquant_optuna.quantization.input_stores import (
    RANGE_BYTES,
    InputContent,
    input_stores,
    packed_rows_nbytes,
    whole,
)
from sgquant_optuna.quantization.layout import bits_for, integers_nbytes, packed_nbytes
from sgquant_optuna.quantization.sites import FULL_PRECISION, BitWidths, Site


@dataclass(frozen=True)
class SiteSize:
    """Size of the matrix at one site.

    Args:
        num_rows:
            Number of nodes (embedding) or edges (attention), of all calls of the layer: each
            call stores its features.
        num_columns:
            Features F (embedding) or heads H (attention).
        num_ranges:
            Number of pairs of scale and zero point that the quantized site stores.
        content:
            Contents of the rows if they are the graph's own features, otherwise ``None``.
    """

    num_rows: int
    num_columns: int
    num_ranges: int = 1
    content: InputContent | None = None

    @property
    def num_elements(self) -> int:
        """Number of stored values."""
        return self.num_rows * self.num_columns

    def to_dict(self) -> dict[str, Any]:
        """Return the size as a dictionary for JSON."""
        return {
            "num_rows": self.num_rows,
            "num_columns": self.num_columns,
            "num_ranges": self.num_ranges,
            "content": None if self.content is None else self.content.to_dict(),
        }

    @classmethod
    def from_dict(cls, size: Mapping[str, Any]) -> SiteSize:
        """Read the dictionary that :meth:`to_dict` returned."""
        content = size["content"]
        return cls(
            num_rows=whole(size["num_rows"]),
            num_columns=whole(size["num_columns"]),
            num_ranges=whole(size["num_ranges"]),
            content=None if content is None else InputContent.from_dict(content),
        )


@dataclass(frozen=True)
class FeatureLayout:
    """All sites of a model on one graph, with their sizes.

    Args:
        sizes:
            Size of each site, in the order of the forward pass.
        num_nodes:
            Number of nodes N of the graph.
        num_buckets:
            Number of degree buckets B; 1 if widths do not depend on the degree.
        notes:
            Lines on what is neither quantized nor counted, each with the name of its layer.
    """

    sizes: Mapping[Site, SiteSize]
    num_nodes: int
    num_buckets: int = 1
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as a dictionary for JSON."""
        layout = {
            "num_nodes": self.num_nodes,
            "num_buckets": self.num_buckets,
            "sizes": {str(site): size.to_dict() for site, size in self.sizes.items()},
        }
        return {**layout, "notes": list(self.notes)} if self.notes else layout

    @classmethod
    def from_dict(cls, layout: Mapping[str, Any]) -> FeatureLayout:
        """Read the dictionary that :meth:`to_dict` returned."""
        sizes = {
            Site.parse(name): SiteSize.from_dict(size) for name, size in layout["sizes"].items()
        }
        notes = tuple(map(str, layout.get("notes", ())))
        return cls(sizes, whole(layout["num_nodes"]), whole(layout["num_buckets"]), notes)


@dataclass(frozen=True)
class Memory:
    """Bytes of an assignment by one accounting, and of the same values at full precision.

    Args:
        memory_bytes:
            Bytes of the assignment.
        full_precision_bytes:
            Bytes of the same values as float32.
    """

    memory_bytes: float
    full_precision_bytes: float

    @property
    def saving(self) -> float:
        """Full-precision bytes divided by bytes of the assignment (31.9 at best in the paper)."""
        return self.full_precision_bytes / self.memory_bytes if self.memory_bytes else 1.0

    @property
    def average_bits(self) -> float:
        """Average number of stored bits of a value, ``32 / saving``."""
        return FULL_PRECISION / self.saving


def paper_memory(layout: FeatureLayout, bits: BitWidths) -> Memory:
    """Count the bytes of the dense node features alone, as the paper's Table III does.

    Args:
        layout:
            All sites with their sizes.
        bits:
            Bit width of each site.

    Raises:
        KeyError:
            If ``bits`` lacks a site of the layout.

    Reference:
        SGQuant (Feng et al., 2020, arXiv:2007.05100), Table III: ``MB = N * (F + W) * 4 / 1e6``
        with W the sum of the hidden widths.
    """
    dense = {site: size for site, size in layout.sizes.items() if site.component == "embedding"}
    stored = sum(size.num_elements * _code_bits(size, bits[site]) for site, size in dense.items())
    return Memory(
        memory_bytes=stored / 8,
        full_precision_bytes=4.0 * sum(size.num_elements for size in dense.values()),
    )


def _code_bits(size: SiteSize, bit_width: int) -> int:
    """Return the bits of a code: one where a row tells the only value that it has beside zero."""
    is_binary = size.content is not None and size.content.row_value is not None
    return 1 if is_binary and bit_width == FULL_PRECISION else bit_width


def honest_memory(layout: FeatureLayout, bits: BitWidths) -> Memory:
    """Count every byte that packed embeddings and attention need.

    Args:
        layout:
            All sites with their sizes.
        bits:
            Bit width of each site.

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
    """Count as :func:`honest_memory`, compared to a float32 model with a losslessly stored input.

    Compared to dense float32, a part of the saving is due to the lossless store of a sparse or
    binary input, which needs no quantization. This baseline excludes that part.

    Args:
        layout:
            All sites with their sizes.
        bits:
            Bit width of each site.

    Raises:
        KeyError:
            If ``bits`` lacks a site of the layout.
    """
    full = sum(site_store(site, size, FULL_PRECISION)[1] for site, size in layout.sizes.items())
    return Memory(honest_memory(layout, bits).memory_bytes, float(full))


def bucket_nbytes(layout: FeatureLayout) -> int:
    """Return the bytes of the degree bucket of every node, stored once for all layers."""
    return integers_nbytes(layout.num_nodes, bits_for(layout.num_buckets - 1))


def site_store(site: Site, size: SiteSize, bit_width: int) -> tuple[str, int]:
    """Return the smallest store of a site at a bit width, and its bytes.

    Args:
        site:
            The site.
        size:
            Size of the site.
        bit_width:
            Bits of each value: 1-8, 16 or 32.

    Returns:
        Name of the store, and its bytes with ranges. The name is ``"rows"``, or for the graph's
        own features any name of :func:`.input_stores`.
    """
    if size.content is not None:
        stores = input_stores(
            size.num_rows, size.num_columns, bit_width, size.num_ranges, size.content
        )
        name = min(stores, key=lambda store: stores[store])
        return name, stores[name]
    if site.component == "attention" and bit_width != FULL_PRECISION:
        # Attention is read in the order of the edges: one run of codes, without padding of rows.
        packed = packed_nbytes(1, size.num_elements, bit_width)
        return "rows", packed + RANGE_BYTES * size.num_ranges
    return "rows", packed_rows_nbytes(size.num_rows, size.num_columns, bit_width, size.num_ranges)


def exact_inputs(layout: FeatureLayout, candidates: Sequence[int]) -> dict[Site, int]:
    """Find the input sites that need no search: a lossless store is as small as any other.

    Args:
        layout:
            All sites with their sizes.
        candidates:
            Bit widths that would be searched.

    Returns:
        Lossless bit width of each of these sites, the one with the fewest bytes.
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
