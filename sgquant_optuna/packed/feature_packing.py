"""Features of any size packed into a file: two passes over the source, in blocks, resumable.

The first pass measures the range of each bucket and looks for NaN, the second one packs. What is
done is written down every few seconds, so that after a kill the next call goes on there.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgquant_optuna.exceptions import GraphError
from sgquant_optuna.graph.degree_edges import check_degree_edges
from sgquant_optuna.packed.array_files import open_array
from sgquant_optuna.packed.checks import MAX_BUCKETS
from sgquant_optuna.packed.degree_order import (
    EdgeList,
    count_degrees,
    place_blocks,
    read_counts,
)
from sgquant_optuna.packed.mapped_features import MappedFeatures
from sgquant_optuna.packed.packed_features import PackedFeatures
from sgquant_optuna.packed.packing_state import PackingState
from sgquant_optuna.packed.row_file import RowFile, check_disk
from sgquant_optuna.packed.row_layout import RowLayout
from sgquant_optuna.quantization.affine import affine_parameters
from sgquant_optuna.quantization.sites import FULL_PRECISION, check_bit_width
from sgquant_optuna.storage.out_files import resuming

_BLOCK_BYTES = 1 << 22
"""Float32 bytes of a block: it stays in the cache from the file to the codes."""
_SECONDS = 2.0
"""Work that a kill can cost."""

Progress = Callable[[str, float], None]
"""Told what is done now, and which part of it is done, 0 to 1."""


class RowSource(Protocol):
    """A matrix ``[N, F]`` that is read in blocks of rows."""

    @property
    def path(self) -> str:
        """Name of the source, for messages."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""

    def stamp(self) -> list[Any]:
        """Return what tells this content from another."""

    def raw(self, start: int, stop: int) -> NDArray[Any]:
        """Read some rows as they are stored."""

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Read some rows as float32, contiguous."""

    def close(self) -> None:
        """Let go of what is open."""


def pack_features(
    source: str | Path | Tensor,
    out: str | Path,
    bits: int | Sequence[int] = 4,
    *,
    edges: str | Path | Tensor | None = None,
    degree_edges: Sequence[int] | None = None,
    tensor: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MappedFeatures:
    """Pack features, of a file of any size, into a file that :func:`load_features` maps.

    The source is read twice, in blocks: memory does not grow with it. Ranges are those of least
    squared error, one for each bucket. After a kill, the same call goes on where it was; the file
    has its name when it is whole.

    Args:
        source:
            File ``.npy`` or ``.safetensors`` of features, or the features themselves: ``[N, F]``
            floating-point numbers of 16, 32 or 64 bits in any byte order, packed as float32.
        out:
            File to write, by custom ``NAME.sgq``.
        bits:
            Bit width, 1-8, 16 or 32; or, with ``edges``, that of each degree bucket, from the
            lowest degree to the highest.
        edges:
            File or tensor of ``edge_index``, ``[2, E]`` integers. With it, rows lie in falling
            order of in-degree, so that rows which many batches need share pages.
        degree_edges:
            Lowest degree of each bucket but the first; by default, buckets of about equal size.
        tensor:
            Name of the tensor in a file of safetensors; needed where it has several.
        overwrite:
            Whether a file that is there already is replaced.
        progress:
            Function that is told what is done now, and which part of it, 0 to 1.

    Returns:
        The packed features, mapped.

    Raises:
        GraphError:
            If the source holds no matrix of floating-point numbers, NaN or infinity, is cut or
            changes meanwhile, or an edge ends outside the nodes.
        ValueError:
            If an argument does not fit, the file is there already, or the disk is too small.

    Reference:
        SGQuant (Feng et al., 2020, arXiv:2007.05100), "Topology-Aware Quantization", for bit
        widths by node degree.
    """
    widths = _checked_widths(bits, by_degree=edges is not None)
    if degree_edges is not None:
        degree_edges = check_degree_edges(degree_edges)
        if edges is None or len(degree_edges) != len(widths) - 1:
            raise ValueError(
                f"degree edges: expected {len(widths) - 1} for {len(widths)} bit widths by "
                f"degree, got {len(degree_edges)}"
            )
    with ExitStack() as stack:
        rows = stack.enter_context(closing(_open_source(source, tensor)))
        edge_list = None if edges is None else stack.enter_context(closing(EdgeList(edges)))
        files = [file for file in (source, edges) if isinstance(file, str | Path)]
        if os.path.exists(out) and any(os.path.samefile(file, out) for file in files):
            raise ValueError(
                f"{out}: expected another file than those that are read, got one of them"
            )
        with resuming(out, overwrite=overwrite) as folder:
            _Packing(str(out), folder, rows, widths, edge_list, degree_edges, progress).run()
    return MappedFeatures(out)


class _Packing:
    """One packing: its parts, and what each step of it needs."""

    def __init__(
        self,
        out: str,
        folder: Path,
        rows: RowSource,
        bit_widths: tuple[int, ...],
        edges: EdgeList | None,
        degree_edges: tuple[int, ...] | None,
        progress: Progress | None,
    ) -> None:
        self._out, self._folder, self._rows, self._edges = out, folder, rows, edges
        self._bit_widths, self._degree_edges = bit_widths, degree_edges
        self._progress = progress or (lambda what, part: None)
        self._stamp = rows.stamp()
        self._block_rows = max(1, _BLOCK_BYTES // (4 * rows.shape[1]))
        job = {
            "rows": self._stamp,
            "bits": bit_widths,
            "edges": edges and edges.stamp(),
            "degree_edges": degree_edges,
            "block_rows": self._block_rows,
        }
        self._state = PackingState(folder / "state", job, len(bit_widths))
        self._saved = time.monotonic()

    def run(self) -> None:
        """Do what is left to do."""
        if not self._state.resumed:
            os.truncate(self._folder / "part", 0)  # nothing of another job
        layout = self._count_degrees()
        with closing(RowFile(self._folder / "part", layout)) as file:
            file.reserve(self._out)
            self._write_places(file)
            self._measure_ranges(file)
            scale, zero_point = self._ranges()
            self._pack_rows(file, scale, zero_point)
            self._progress("adding up the checksum", 0.0)
            file.finish(scale.numpy(), zero_point.numpy())

    def _count_degrees(self) -> RowLayout:
        """Return the layout, for which the degrees are counted, unless they are."""
        num_nodes, edges = self._rows.shape[0], self._edges
        if edges is None:
            return RowLayout(self._rows.shape, self._bit_widths, (num_nodes,), False)
        path = self._folder / "degrees"
        if self._state.is_before("places") or not path.exists():
            check_disk(self._out, self._folder, 8 * num_nodes, 8 * num_nodes)
            count_degrees(edges, num_nodes, path, self._progress)
            self._state.save("places", 0)
        counts = read_counts(path, num_nodes)
        self._counts = counts
        cuts = self._degree_edges
        if cuts is None:
            cuts = counts.quantile_edges(len(self._bit_widths))
        return RowLayout(self._rows.shape, self._bit_widths, counts.bucket_rows(cuts), True)

    def _write_places(self, file: RowFile) -> None:
        if self._edges is not None and self._state.is_before("ranges"):
            path, num_nodes = self._folder / "degrees", self._rows.shape[0]
            for start, places in place_blocks(path, num_nodes, self._counts):
                self._progress("ordering rows by degree", start / num_nodes)
                file.write_places(start, places)
            file.sync()
        if self._state.is_before("ranges"):
            self._state.save("ranges", 0)

    def _measure_ranges(self, file: RowFile) -> None:
        """Add up the histograms, and look for values that have no code."""
        if not self._state.is_before("rows"):
            return
        is_full = set(self._bit_widths) == {FULL_PRECISION}
        for start, x in self._blocks("measuring ranges"):
            block = torch.from_numpy(x)
            if not bool(torch.isfinite(torch.stack(block.aminmax())).all()):
                self._refuse(start, x)
            if not is_full:
                self._state.histogram.add(block, self._buckets(file, start, len(x)))
            self._save_sometimes("ranges", start + len(x))
        self._check_unchanged()
        self._state.save("rows", 0)

    def _ranges(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of each bucket, ``[B, 1]``; 1 and 0 of float32."""
        lower, upper = self._state.histogram.ranges(self._bit_widths)
        widths = torch.tensor(self._bit_widths)[:, None]
        scale, zero_point = affine_parameters(lower[:, None], upper[:, None], widths)
        is_full = widths == FULL_PRECISION
        return scale.masked_fill(is_full, 1.0), zero_point.masked_fill(is_full, 0.0)

    def _pack_rows(self, file: RowFile, scale: Tensor, zero_point: Tensor) -> None:
        if not self._state.is_before("checksum"):
            return
        for start, x in self._blocks("packing"):
            bucket = self._buckets(file, start, len(x))
            packed = PackedFeatures.from_dense(
                torch.from_numpy(x), bucket, self._bit_widths, scale, zero_point
            )
            if bucket is None:
                file.write_rows(0, start, packed.packed_rows(0).numpy())
            else:
                places = file.read_places(start, start + len(x))
                for number in bucket.unique().tolist():
                    of = (bucket == number).numpy()
                    file.write_rows(number, places[of], packed.packed_rows(number).numpy())
            self._save_sometimes("rows", start + len(x), file)
        self._check_unchanged()
        file.sync()
        self._state.save("checksum", 0)

    def _blocks(self, what: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Read the rows that this step has not done: the first of each block, and its values."""
        num_rows = self._rows.shape[0]
        for start in range(self._state.row, num_rows, self._block_rows):
            self._progress(what, start / num_rows)
            yield start, self._rows.read(start, min(start + self._block_rows, num_rows))

    def _buckets(self, file: RowFile, start: int, count: int) -> Tensor | None:
        """Return the bucket of each row of a block, ``[n]`` uint8; ``None`` without degrees."""
        if self._edges is None:
            return None
        places = file.read_places(start, start + count)
        return torch.from_numpy(file.layout.buckets_of(places))

    def _save_sometimes(self, stage: str, row: int, file: RowFile | None = None) -> None:
        if time.monotonic() - self._saved < _SECONDS:
            return
        self._check_unchanged()
        if file is not None:
            file.sync()
        self._state.save(stage, row)
        self._saved = time.monotonic()

    def _check_unchanged(self) -> None:
        if self._rows.stamp() != self._stamp:
            raise GraphError(
                f"{self._rows.path}: changed while it was read; pack it again when it is whole"
            )

    def _refuse(self, start: int, x: NDArray[np.float32]) -> NoReturn:
        row, column = (int(found[0]) for found in np.nonzero(~np.isfinite(x)))
        value = self._rows.raw(start + row, start + row + 1)[0, column]
        raise GraphError(
            f"{self._rows.path}, row {start + row}, column {column}: expected a finite float32, "
            f"got {value}; clean the features first"
        )


def _checked_widths(bits: int | Sequence[int], *, by_degree: bool) -> tuple[int, ...]:
    widths = (bits,) if isinstance(bits, int) else tuple(bits)
    for width in widths:
        check_bit_width(width, where="bits")
    if not 1 <= len(widths) <= (MAX_BUCKETS if by_degree else 1):
        expected = f"1 to {MAX_BUCKETS} bit widths" if by_degree else "one bit width"
        raise ValueError(
            f"bits: expected {expected}, got {len(widths)}; several belong to buckets of nodes by "
            f"degree, which need the edges"
        )
    return widths


def _open_source(source: str | Path | Tensor, tensor: str | None) -> RowSource:
    if isinstance(source, Tensor):
        return _TensorSource(source)
    found = open_array(source, tensor=tensor)
    if not found.is_float:
        found.close()
        raise GraphError(
            f"{source}: expected floating-point features, got {found.type_name}; integers may be "
            f"numbers of nodes or classes: where they are features, save x.astype('float32')"
        )
    return found


class _TensorSource:
    """Features in memory."""

    def __init__(self, x: Tensor) -> None:
        self.path = "features"
        if x.dim() != 2 or not x.numel() or not x.is_floating_point() or x.layout != torch.strided:
            raise GraphError(
                f"features: expected dense floating-point numbers [N, F], got {x.dtype} "
                f"{list(x.shape)}"
            )
        self._x = x.detach().cpu()
        self.shape = (int(x.shape[0]), int(x.shape[1]))

    def stamp(self) -> list[Any]:
        value = 0
        for block in self._x.split(max(1, _BLOCK_BYTES // self.shape[1])):
            value = zlib.crc32(block.contiguous().view(torch.uint8).numpy(), value)
        return ["in memory", list(self.shape), str(self._x.dtype), value]

    def raw(self, start: int, stop: int) -> NDArray[Any]:
        return self._x[start:stop].double().numpy()

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        return self._x[start:stop].float().contiguous().numpy()

    def close(self) -> None:
        pass
