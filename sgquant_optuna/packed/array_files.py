"""Matrices in files of NumPy and safetensors, read in blocks of rows.

They are read, not mapped: a mapped file that another program cuts ends the process (SIGBUS), and
its pages count as memory of the process. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from sgquant_optuna.exceptions import GraphError

_BF16 = "BF16"
_FLOATS = {"F16": "<f2", _BF16: "<u2", "F32": "<f4", "F64": "<f8"}
_INTEGERS = {"I8": "<i1", "U8": "<u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4"}
_TYPES = _FLOATS | _INTEGERS | {"I64": "<i8", "U64": "<u8", "BOOL": "|b1"}

Names: TypeAlias = tuple[str | None, str | None]
"""Tensor that was named, and the one that is usual."""


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """A matrix ``[R, C]`` in an open file.

    Args:
        path:
            File as the user named it, for messages.
        file:
            Open file.
        dtype:
            Type of the stored values, in their byte order.
        type_name:
            Type as the file names it.
        shape:
            Number of rows R and of columns C.
        offset:
            First byte of the values.
        by_column:
            Whether the values of a column lie together (Fortran order).
    """

    path: str
    file: BinaryIO
    dtype: np.dtype[Any]
    type_name: str
    shape: tuple[int, int]
    offset: int
    by_column: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def is_float(self) -> bool:
        """Whether the values are floating-point numbers of 16, 32 or 64 bits."""
        return self.type_name == _BF16 or (self.dtype.kind == "f" and self.dtype.itemsize <= 8)

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def transposed(self) -> ArrayFile:
        """Return the same values as ``[C, R]``; nothing is read."""
        parts = self.dtype, self.type_name, self.shape[::-1], self.offset, not self.by_column
        return ArrayFile(self.path, self.file, *parts)

    def stamp(self) -> list[Any]:
        """Return what tells this content from another: file, size, time, place and type."""
        found = os.fstat(self.file.fileno())
        of_file = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]
        return [*of_file, self.offset, self.type_name, str(self.dtype), list(self.shape)]

    def raw(self, start: int, stop: int) -> NDArray[Any]:
        """Read some rows as they are stored, ``[stop - start, C]``.

        Raises:
            GraphError:
                If the file has become shorter.
        """
        num_rows, num_columns = self.shape
        if not self.by_column:
            out = np.empty((stop - start, num_columns), self.dtype)
            self._read_into(out, start * num_columns)
            return out
        columns = np.empty((num_columns, stop - start), self.dtype)
        for number, column in enumerate(columns):
            self._read_into(column, number * num_rows + start)
        return columns.T

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Read some rows as float32, ``[stop - start, C]`` contiguous.

        Values beyond float32 become infinite.
        """
        raw = self.raw(start, stop)
        if self.type_name == _BF16:
            return (raw.astype(np.uint32, order="C") << 16).view(np.float32)
        with np.errstate(over="ignore"):
            x = raw.astype(np.float32, copy=False)
        # Torch transposes twice as fast as NumPy.
        return torch.from_numpy(x).contiguous().numpy()

    def _read_into(self, out: NDArray[Any], first: int) -> None:
        left, place = memoryview(out.data).cast("B"), self.offset + first * self.dtype.itemsize
        while len(left):
            count = os.preadv(self.file.fileno(), [left], place)
            if not count:
                raise GraphError(f"{self.path}: was cut while it was read; pack it again")
            left, place = left[count:], place + count


def open_array(
    path: str | Path,
    *,
    tensor: str | None = None,
    usual: str | None = None,
    like: str = "[N, F]",
) -> ArrayFile:
    """Open a matrix in a file ``.npy`` or ``.safetensors``.

    Args:
        path:
            File to open.
        tensor:
            Name of the tensor in a file of safetensors; needed where it has several.
        usual:
            Name of the tensor that is taken of several without being named.
        like:
            Shape that is expected, for the message.

    Raises:
        GraphError:
            If there is no such file, it is of another format, damaged, cut or longer than it says,
            or holds no matrix.
        ValueError:
            If the tensor is not one of those in the file, or not named.
    """
    shown, kind = str(path), Path(path).suffix.lower()
    openers: dict[str, Callable[..., ArrayFile]] = {".npy": _npy, ".safetensors": _safetensors}
    if kind not in openers:
        raise GraphError(
            f"{shown}: expected a file .npy or .safetensors, got {kind or 'no ending'}; save it "
            f"with numpy.save"
        )
    if tensor is not None and kind == ".npy":
        raise ValueError(f"{shown}: holds one array without a name, got the name {tensor!r:.60}")
    try:
        file = open(path, "rb")  # noqa: SIM115 - it stays open as long as the array is used
    except OSError as error:
        raise GraphError(f"{shown}: cannot read it ({error.strerror or error})") from error
    try:
        found = openers[kind](shown, file, (tensor, usual), like)
        _check_size(found)
    except BaseException:
        file.close()
        raise
    return found


def _npy(path: str, file: BinaryIO, _: Names, like: str) -> ArrayFile:
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(file)
        shape, by_column, dtype = readers[version](file)
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise GraphError(f"{path}: not a file of numpy.save, or a damaged one") from error
    if dtype.hasobject:
        raise GraphError(
            f"{path}: expected numbers, got Python objects, which are never unpickled; save "
            f"x.astype('float32')"
        )
    if dtype.fields or dtype.subdtype:
        raise GraphError(f"{path}: expected a matrix of numbers, got records of {dtype!s:.60}")
    matrix = _checked_shape(path, shape, like)
    return ArrayFile(path, file, dtype, dtype.name, matrix, file.tell(), by_column)


def _safetensors(path: str, file: BinaryIO, wanted: Names, like: str) -> ArrayFile:
    try:
        with safe_open(path, framework="numpy") as opened:
            names = sorted(opened.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise GraphError(f"{path}: not a file of safetensors, or a damaged one") from error
    shown = f"{', '.join(map(repr, names)):.200}"
    tensor, usual = wanted
    if tensor is None and len(names) != 1 and usual not in names:
        hint = "name one (--tensor NAME)" if usual is None else f"expected one, or {usual!r}"
        raise ValueError(f"{path}: holds {len(names)} tensors ({shown}); {hint}")
    name = tensor or (names[0] if len(names) == 1 else usual)
    if name not in names:
        raise ValueError(f"{path}: expected one of its tensors {shown}, got {name!r:.60}")
    # The frame was checked by safetensors, which does not say where a tensor lies.
    length = int.from_bytes(file.read(8), "little")
    entry = json.loads(file.read(length))[name]
    if entry["dtype"] not in _TYPES:
        raise GraphError(f"{path}: expected floating-point numbers, got {entry['dtype']}")
    shape = _checked_shape(path, entry["shape"], like)
    offset = 8 + length + entry["data_offsets"][0]
    return ArrayFile(path, file, np.dtype(_TYPES[entry["dtype"]]), entry["dtype"], shape, offset)


def _checked_shape(path: str, shape: Sequence[int], like: str) -> tuple[int, int]:
    if len(shape) != 2 or not all(shape):
        raise GraphError(f"{path}: expected a matrix {like}, got the shape {list(shape)!s:.60}")
    return int(shape[0]), int(shape[1])


def _check_size(array: ArrayFile) -> None:
    """Check that the file is not cut; a file of NumPy ends with its array."""
    found = os.fstat(array.file.fileno()).st_size
    expected = array.offset + array.nbytes
    if found < expected or (found > expected and array.path.lower().endswith(".npy")):
        what = "cut" if found < expected else "longer than its array"
        raise GraphError(f"{array.path}: is {what}: expected {expected:,} bytes, got {found:,}")
