"""``sgquant pack``: features of any size as a file of few bits, which loaders map."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgquant_optuna.cli.options import Quiet, Root, integers

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.status import Status
    from torch import Tensor

    from sgquant_optuna.packed.mapped_features import MappedFeatures

_ENDING = ".sgq"
_BETWEEN_UPDATES = 0.1  # seconds


def pack(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|DATASET",
            show_default=False,
            help="Features [N, F] in a file .npy or .safetensors, or a data set such as Reddit.",
        ),
    ],
    bits: Annotated[
        str,
        typer.Option(help="1-8, 16 or 32; by degree, from the lowest degree to the highest: 8,4."),
    ] = "4",
    out: Annotated[
        Path | None, typer.Option(show_default="NAME.sgq", help="File to write.")
    ] = None,
    by_degree: Annotated[
        bool,
        typer.Option(
            "--by-degree", help="Order rows by in-degree: those of many batches share pages."
        ),
    ] = False,
    edges: Annotated[
        Path | None,
        typer.Option(show_default="the data set's", help="File of edge_index [2, E], integers."),
    ] = None,
    degree_edges: Annotated[
        str | None,
        typer.Option(
            show_default="buckets of about equal size",
            help="The lowest degree of each bucket but the first: 4,8,16.",
        ),
    ] = None,
    tensor: Annotated[
        str | None,
        typer.Option(show_default="the only one", help="Name of the tensor in .safetensors."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there already.")
    ] = False,
    root: Root = None,
    quiet: Quiet = False,
) -> None:
    """Pack features of any size in little memory; after a kill, the same command goes on."""
    widths = integers(bits, what="--bits")
    cuts = None if degree_edges is None else integers(degree_edges, what="--degree-edges")
    for name, is_given in (("--edges", edges), ("--degree-edges", cuts)):
        if is_given is not None and not by_degree:
            raise ValueError(f"{name}: expected together with --by-degree, got it alone")
    from sgquant_optuna.cli.console import console, plain
    from sgquant_optuna.packed.feature_packing import pack_features

    path = out or Path(Path(source).stem + _ENDING)
    start = time.monotonic()
    with console(stderr=True, quiet=quiet).status(plain(f"reading {source}")) as status:
        rows, edge_index = _source(source, tensor, by_degree=by_degree, edges=edges, root=root)
        packed = pack_features(
            rows,
            path,
            widths,
            edges=edge_index,
            degree_edges=cuts,
            tensor=tensor,
            overwrite=overwrite,
            progress=_shown(status),
        )
    typer.echo(_summary(path, packed, time.monotonic() - start))


def _source(
    source: str, tensor: str | None, *, by_degree: bool, edges: Path | None, root: Path | None
) -> tuple[Path | Tensor, Path | Tensor | None]:
    """Return features and edges, of files or of a data set; no edges if order does not matter."""
    path = Path(source)
    if path.suffix or path.exists():
        if by_degree and edges is None:
            raise ValueError(
                "--by-degree: expected --edges FILE with edge_index for features of a file, got "
                "none"
            )
        return path, edges
    from sgquant_optuna.graph.datasets import load_graph

    if tensor is not None:
        raise ValueError(f"--tensor: expected a file .safetensors, got the data set {source}")
    data = load_graph(source, root)
    return data.x, (edges or data.edge_index) if by_degree else None


def _shown(status: Status) -> Callable[[str, float], None]:
    """Return a function that shows what is done, not more often than anybody can read."""
    from sgquant_optuna.cli.console import plain

    last = 0.0

    def show(what: str, part: float) -> None:
        nonlocal last
        if time.monotonic() - last >= _BETWEEN_UPDATES:
            last = time.monotonic()
            status.update(plain(f"{what}: {part:.0%}"))

    return show


def _summary(path: Path, packed: MappedFeatures, seconds: float) -> str:
    from sgquant_optuna.study.byte_sizes import megabytes

    num_nodes, num_columns = packed.shape
    widths = ", ".join(map(str, packed.bit_widths))
    full = 4 * num_nodes * num_columns
    lines = [
        f"{path}: {num_nodes:,} x {num_columns:,} at {widths} bits, "
        f"{megabytes(packed.stored_nbytes)}, {full / packed.stored_nbytes:.1f} times smaller "
        f"than float32"
    ]
    if len(packed.bit_widths) > 1:
        rows = ", ".join(f"{count:,}" for count in packed.layout.bucket_rows)
        lines.append(f"rows of the buckets from the lowest degree to the highest: {rows}")
    lines.append(
        f"{megabytes(full)} of float32 in {seconds:.1f} s, {full / seconds / 1e9:.2f} GB/s"
    )
    return "\n".join(lines)
