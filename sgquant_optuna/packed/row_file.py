"""The file of packed rows while it is written: of its full size from the start, in any order."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sgquant_optuna.packed import container
from sgquant_optuna.packed.mapped_features import KIND, file_pieces
from sgquant_optuna.packed.row_layout import RowLayout

_PAGE = 4096


class RowFile:
    """Frame, rows, places and ranges of packed features.

    Args:
        path:
            File that is there.
        layout:
            Places of the rows.
    """

    def __init__(self, path: Path, layout: RowLayout) -> None:
        self.layout = layout
        num_places = layout.shape[0] if layout.by_degree else 0
        ranges = [len(layout.bit_widths), 1]
        parts = {
            "data": ("U8", [layout.data_nbytes], layout.data_nbytes),
            "place": ("I32", [num_places], 4 * num_places),
            "scale": ("F32", ranges, 4 * ranges[0]),
            "zero_point": ("F32", ranges, 4 * ranges[0]),
        }
        self._entries: dict[str, Any] = {}
        begin = 0
        for name, (kind, shape, nbytes) in parts.items():
            end = begin + nbytes
            self._entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
            begin = end
        # Rows begin with a page. The checksum has ten digits at most.
        self.first_byte = -(-(8 + len(self._frame(2**32 - 1))) // _PAGE) * _PAGE
        self.nbytes = self.first_byte + begin
        self._descriptor = os.open(path, os.O_RDWR)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def reserve(self, out: str) -> None:
        """Take the whole size of the file on the disk.

        Raises:
            ValueError:
                If the disk is too small.
        """
        found = os.fstat(self._descriptor)
        check_disk(out, self._descriptor, self.nbytes - 512 * found.st_blocks, self.nbytes)
        os.ftruncate(self._descriptor, self.nbytes)
        try:
            os.posix_fallocate(self._descriptor, 0, self.nbytes)
        except OSError as error:  # a file system that cannot: what is missing is told later
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise

    def sync(self) -> None:
        """Return when all that was written is on the disk."""
        os.fdatasync(self._descriptor)

    def write_rows(self, bucket: int, places: NDArray[Any] | int, rows: NDArray[np.uint8]) -> None:
        """Write packed rows of one bucket.

        Args:
            bucket:
                Bucket of all of them.
            places:
                Place of each among all rows, ``[n]``, or of the first where they lie together.
            rows:
                Packed rows, ``[n, bytes of a row]`` contiguous.
        """
        size = self.layout.row_nbytes[bucket]
        first = self.first_byte + self.layout.first_bytes[bucket]
        first -= size * self.layout.first_places[bucket]
        if isinstance(places, int):
            self._write(rows, first + size * places)
            return
        order = np.argsort(places)
        places, rows = places[order], rows[order]
        cuts = np.flatnonzero(np.diff(places) != 1) + 1
        for start, stop in zip([0, *cuts], [*cuts, len(places)], strict=True):
            self._write(rows[start:stop], first + size * int(places[start]))

    def write_places(self, start: int, places: NDArray[np.int32]) -> None:
        """Write the places of some nodes, from the node ``start`` on."""
        self._write(places, self._begin("place") + 4 * start)

    def read_places(self, start: int, stop: int) -> NDArray[np.int32]:
        """Read the places of some nodes."""
        begin = self._begin("place")
        content = os.pread(self._descriptor, 4 * (stop - start), begin + 4 * start)
        return np.frombuffer(content, np.int32)

    def finish(self, scale: NDArray[np.float32], zero_point: NDArray[np.float32]) -> None:
        """Write the ranges, ``[B, 1]`` each, and the frame with the checksum of everything."""
        self._write(scale, self._begin("scale"))
        self._write(zero_point, self._begin("zero_point"))
        spans = [(self._begin(name), self._nbytes(name)) for name in sorted(self._entries)]
        types = {"U8": torch.uint8, "I32": torch.int32, "F32": torch.float32}
        layout = {
            name: [str(types[entry["dtype"]]), entry["shape"]]
            for name, entry in self._entries.items()
        }
        pieces = file_pieces(self._descriptor, spans)
        frame = self._frame(container.checksum(self._header(), layout, pieces))
        length = self.first_byte - 8
        content = length.to_bytes(8, "little") + frame.ljust(length)
        self._write(np.frombuffer(content, np.uint8), 0)

    def _begin(self, name: str) -> int:
        return int(self.first_byte + self._entries[name]["data_offsets"][0])

    def _nbytes(self, name: str) -> int:
        begin, end = self._entries[name]["data_offsets"]
        return int(end - begin)

    def _header(self) -> dict[str, Any]:
        return {"version": container.VERSION, "kind": KIND, "fields": self.layout.fields()}

    def _frame(self, crc32: int) -> bytes:
        header = json.dumps(self._header() | {"crc32": crc32}, sort_keys=True)
        return json.dumps({"__metadata__": {container.KEY: header}} | self._entries).encode()

    def _write(self, content: NDArray[Any], place: int) -> None:
        left = memoryview(np.ascontiguousarray(content).data).cast("B")
        while len(left):
            count = os.pwrite(self._descriptor, left, place)
            left, place = left[count:], place + count


def check_disk(out: str, where: int | Path, needed: int, nbytes: int) -> None:
    """Check that a disk has room.

    Args:
        out:
            File as the user named it.
        where:
            Open file or folder on that disk.
        needed:
            Bytes that have to be free.
        nbytes:
            Bytes of the whole file, for the message.

    Raises:
        ValueError:
            If it has not.
    """
    found = os.statvfs(where)
    free = found.f_bavail * found.f_frsize
    if needed > free:
        raise ValueError(
            f"{out}: expected {needed / 1e6:,.1f} MB free on its disk for {nbytes / 1e6:,.1f} MB "
            f"of packed features, got {free / 1e6:,.1f} MB; free some, or take fewer bits"
        )
