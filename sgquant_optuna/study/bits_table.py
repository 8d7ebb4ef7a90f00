"""The widths of an assignment as a table: layers, components and degree buckets."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from sgquant_optuna.graph.degree_edges import bucket_labels
from sgquant_optuna.quantization.memory import site_store
from sgquant_optuna.quantization.sites import FULL_PRECISION, BitWidths, Site
from sgquant_optuna.study.record import StudyRecord


def bits_table(record: StudyRecord, bits: BitWidths, title: str) -> Table:
    """Return the widths of every layer, component and degree bucket.

    Args:
        record:
            Record of the study.
        bits:
            Width of every site.
        title:
            Title of the table, as plain text.
    """
    table = Table(title=Text(title))  # a name may look like markup
    if record.layout.notes:
        table.caption = Text("\n".join(record.layout.notes))
    labels = bucket_labels(record.degree_edges)
    by_bucket = any(site.bucket is not None for site in bits)
    table.add_column("layer")
    table.add_column("component")
    table.add_column("values", justify="right")
    columns = [f"degree {label}" for label in labels] if by_bucket else ["bits"]
    for column in columns:
        table.add_column(column, justify="right")
    parts = [
        [s for s in bits if (s.layer, s.component) == part]
        for part in dict.fromkeys((s.layer, s.component) for s in bits)
    ]
    stores = [_store(record, bits, sites) for sites in parts]
    tells_stores = any(store != "rows" for store in stores)  # else all is as expected
    if tells_stores:
        table.add_column("stored as")
    for sites, store in zip(parts, stores, strict=True):
        count = sum(record.layout.sizes[site].num_elements for site in sites)
        table.add_row(
            Text(sites[0].layer),  # a key of a ModuleDict may look like markup, too
            sites[0].component,
            f"{count:,}",
            *_widths(bits, sites, len(columns)),
            *([store] if tells_stores else []),
        )
    return table


def _store(record: StudyRecord, bits: BitWidths, sites: list[Site]) -> str:
    sizes = record.layout.sizes
    stores = {site_store(site, sizes[site], bits[site])[0] for site in sites}
    contents = [sizes[site].content for site in sites]
    exact = all(
        content is not None and bits[site] in (*content.lossless, FULL_PRECISION)
        for site, content in zip(sites, contents, strict=True)
    )
    return " and ".join(sorted(stores)) + (", exact" if exact else "")


def _widths(bits: BitWidths, sites: list[Site], columns: int) -> list[str]:
    if sites[0].bucket is None:
        return (
            [str(bits[sites[0]])] * columns
            if columns == 1
            else [f"all: {bits[sites[0]]}", *[""] * (columns - 1)]
        )
    by_bucket = {site.bucket: str(bits[site]) for site in sites}
    return [by_bucket.get(bucket, "-") for bucket in range(columns)]
