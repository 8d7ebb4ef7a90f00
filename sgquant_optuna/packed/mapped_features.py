"""Features in a file of ``sgquant pack``, mapped: a process holds the pages that it reads.

The file is one of safetensors with the header of :mod:`.container`. Opening it reads the header
alone, and the place of a node is read from the file, too, so that many processes share all of it.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed import container
from sgquant_optuna.packed.packed_features import KIND as PACKED_FEATURES
from sgquant_optuna.packed.packed_features import PackedFeatures
from sgquant_optuna.packed.row_layout import RowLayout

KIND = "packed_rows"
_BLOCK_VALUES = 1 << 20


class MappedFeatures:
    """Node features ``[N, F]`` in a file of :func:`~sgquant_optuna.pack_features`.

    Only the rows that are asked for are read. Copies for other processes are pickled by the path
    of the file, and its pages are in memory once for all of them.

    Args:
        path:
            File to map.
        verify:
            Whether to compare the checksum, which reads the whole file.

    Raises:
        PackingError:
            If the file is cut, altered, or not of this kind.
    """

    def __init__(self, path: str | Path, *, verify: bool = False) -> None:
        self.path = Path(path).resolve()
        header = read_header(path)
        if (header["version"], header["kind"]) != (container.VERSION, KIND):
            raise PackingError(
                f"{path}: expected {KIND} of version {container.VERSION}, got "
                f"{header['kind']!r:.60} of {header['version']!r:.60}"
            )
        self._checksum = header["crc32"]
        try:
            self._open(header["fields"])
            if verify:
                self._verify(header)
        except PackingError as error:
            raise PackingError(f"{path}: {error}") from error
        except (LookupError, OSError, OverflowError, TypeError, ValueError) as error:
            raise PackingError(f"{path}: its header does not fit its rows") from error

    def _open(self, fields: dict[str, Any]) -> None:
        self.layout = RowLayout.of_fields(fields)
        with open(self.path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            self._entries = json.loads(file.read(length))
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._nbytes, self._first = len(self._map), 8 + length
        # Else each row that is not in memory yet would bring 128 KiB of others along.
        self._map.madvise(mmap.MADV_RANDOM)
        num_nodes, num_buckets = self.layout.shape[0], len(self.layout.bit_widths)
        self._data = self._part("data", np.uint8, (self.layout.data_nbytes,))
        self._place = self._part("place", "<i4", (num_nodes if self.layout.by_degree else 0,))
        scale, zero_point = (
            torch.from_numpy(self._part(name, "<f4", (num_buckets, 1)).copy())
            for name in ("scale", "zero_point")
        )
        empty = torch.empty(0, dtype=torch.uint8)
        # It has no rows, but checks widths and ranges, and decodes.
        self._decoder = PackedFeatures(
            empty, empty, self.bit_widths, scale, zero_point, self.layout.shape[1]
        )

    def _part(self, name: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        begin, end = self._entries[name]["data_offsets"]
        if end - begin != np.dtype(dtype).itemsize * int(np.prod(shape)):
            raise PackingError(f"{name}: expected {list(shape)}, got {end - begin} bytes")
        flat = np.frombuffer(self._map, dtype, int(np.prod(shape)), self._first + begin)
        return flat.reshape(shape)

    def _verify(self, header: dict[str, Any]) -> None:
        layout = {
            name: [str(_DTYPES[entry["dtype"]]), entry["shape"]]
            for name, entry in self._entries.items()
            if name != "__metadata__"
        }
        spans = [self._entries[name]["data_offsets"] for name in sorted(layout)]
        with open(self.path, "rb") as file:
            pieces = file_pieces(
                file.fileno(), [(self._first + low, high - low) for low, high in spans]
            )
            known = {name: header[name] for name in ("version", "kind", "fields")}
            if container.checksum(known, layout, pieces) != self._checksum:
                raise PackingError("its checksum differs; the file was altered, copy it again")

    @property
    def shape(self) -> tuple[int, int]:
        """Number of nodes N and of features F."""
        return self.layout.shape

    @property
    def device(self) -> torch.device:
        """Device of the rows: the CPU."""
        return torch.device("cpu")

    @property
    def bit_widths(self) -> tuple[int, ...]:
        """Bit width of each bucket."""
        return self.layout.bit_widths

    @property
    def stored_nbytes(self) -> int:
        """Bytes of rows, places and ranges in the file."""
        scale = self._decoder.scale
        return self._data.nbytes + self._place.nbytes + 2 * scale.nbytes

    def rows(self, index: Tensor) -> Tensor:
        """Read some rows as float32.

        Args:
            index:
                Nodes, ``[R]`` int64; may repeat.

        Returns:
            Features, ``[R, F]`` float32.

        Raises:
            IndexError:
                If a node is not one of ``0 ... N - 1``.
            PackingError:
                If the file was cut or has grown since it was opened.
        """
        nodes = index.cpu().numpy()
        if len(nodes) and not 0 <= nodes.min() <= nodes.max() < self.shape[0]:
            raise IndexError(
                f"nodes: expected 0 to {self.shape[0] - 1}, got {nodes.min()} to {nodes.max()}"
            )
        # A page that is no more ends the process.
        if self._map.size() != self._nbytes:
            raise PackingError(
                f"{self.path}: had {self._nbytes:,} bytes when it was opened and has "
                f"{self._map.size():,} now; pack it again"
            )
        places = self._places(nodes)
        if len(self.bit_widths) == 1:
            return self._of_bucket(0, places)
        out = torch.empty(len(nodes), self.shape[1])
        buckets = self.layout.buckets_of(places)
        for number in np.unique(buckets):
            where = np.flatnonzero(buckets == number)
            out[torch.from_numpy(where)] = self._of_bucket(int(number), places[where])
        return out

    def _places(self, nodes: NDArray[Any]) -> NDArray[Any]:
        if not self.layout.by_degree:
            return nodes
        places: NDArray[Any] = self._place[nodes]
        if len(places) and not 0 <= places.min() <= places.max() < self.shape[0]:
            raise PackingError(f"{self.path}: places of its rows are damaged; pack it again")
        return places

    def _of_bucket(self, number: int, places: NDArray[Any]) -> Tensor:
        layout = self.layout
        size, count = layout.row_nbytes[number], layout.bucket_rows[number]
        first = layout.first_bytes[number]
        rows = self._data[first : first + count * size].reshape(count, size)
        packed = np.take(rows, places - layout.first_places[number], axis=0)
        nodes = torch.empty(0, dtype=torch.long)  # ranges do not depend on the row
        return self._decoder.decode(torch.from_numpy(packed), number, nodes)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Read all rows block by block: their nodes, and a matrix, ``[n, F]`` float32."""
        rows = max(1, _BLOCK_VALUES // self.shape[1])
        for start in range(0, self.shape[0], rows):
            nodes = slice(start, min(start + rows, self.shape[0]))
            yield nodes, self.rows(torch.arange(nodes.start, nodes.stop))

    def to_dense(self) -> Tensor:
        """Read everything as float32, ``[N, F]``."""
        out = torch.empty(self.shape)
        for nodes, block in self.blocks():
            out[nodes] = block
        return out

    def __reduce__(self) -> tuple[Callable[..., MappedFeatures], tuple[str, int]]:
        """Pickle by the path and the checksum."""
        return _reopen, (str(self.path), self._checksum)

    def __repr__(self) -> str:
        """Return path, shape and widths as text."""
        num_nodes, num_columns = self.shape
        return (
            f"MappedFeatures({str(self.path)!r}, {num_nodes} x {num_columns}, {self.bit_widths})"
        )


_DTYPES = {"U8": torch.uint8, "I32": torch.int32, "F32": torch.float32}


def load_features(path: str | Path, *, verify: bool = False) -> MappedFeatures | PackedFeatures:
    """Map features in a file; nothing but its header is read.

    Args:
        path:
            File of ``sgquant pack``, of :func:`~sgquant_optuna.pack_features` or of
            :meth:`.PackedFeatures.save`.
        verify:
            Whether to compare the checksum, which reads the whole file.

    Returns:
        Features: ``rows(nodes)`` gives those of some nodes, ``PackedTensor(features)`` is the
        ``x`` of a graph, and ``PackedFeatureStore(features)`` a store for the loaders of PyG.

    Raises:
        FileNotFoundError:
            If there is no such file.
        PackingError:
            If the file is cut, altered, or not of this kind.
    """
    if read_header(path)["kind"] == PACKED_FEATURES:
        return PackedFeatures.open(path, verify=verify)
    return MappedFeatures(path, verify=verify)


def read_header(path: str | Path) -> dict[str, Any]:
    """Return the header of a packed file of any size: version, kind, fields and checksum.

    Raises:
        FileNotFoundError:
            If there is no such file.
        PackingError:
            If the file is not ours, or a damaged one.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"packed file: expected a file at {path}, found none")
    try:
        # For torch, safetensors maps a file with the right to write: not one larger than memory.
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})[container.KEY])
        return {name: header[name] for name in ("version", "kind", "fields", "crc32")}
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        raise PackingError(f"{path}: not a packed file of ours, or a damaged one") from error


def file_pieces(descriptor: int, spans: list[tuple[int, int]]) -> Iterator[bytes]:
    """Read spans (first byte, number of bytes) of a file in pieces."""
    for start, count in spans:
        for place in range(start, start + count, container.CHECKSUM_BYTES):
            left = min(container.CHECKSUM_BYTES, start + count - place)
            yield os.pread(descriptor, left, place)


def _reopen(path: str, checksum: int) -> MappedFeatures:
    """Map the file again that a pickle names, unless another one lies there now."""
    opened = MappedFeatures(path)
    if opened._checksum != checksum:
        raise PackingError(f"{path}: expected the file that was pickled by name, got another")
    return opened
