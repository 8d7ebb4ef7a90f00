"""Arrays of raw files, checked before NumPy, SciPy or torch computes with them.

A file is somebody else's program input: an index out of range is read or written past the end of
an array by compiled code, and a header that claims 2^60 values asks for the memory of them. Every
function here raises ``ValueError`` for that; :func:`reading_raw` names the file.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import re
import stat
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import scipy.sparse as sp
from numpy.lib import format as npy

from sgquant_optuna.exceptions import GraphError, short_message
from sgquant_optuna.graph.pickled_values import Described, read_pickled

MAX_VALUES = 1 << 30
"""Values of the largest array; Coauthor Physics, the largest known one, has 290 million."""

Array = np.ndarray[Any, Any]

_MAX_PICKLE = 1 << 28  # bytes; that of PubMed takes 12 million
_MAX_TEXT = 1 << 30  # characters; the features of ogbn-arxiv take about 250 million
_MAX_LINE = 1 << 16
_PIECE = 1 << 20
_NUMBERS = re.compile("b1|[iu][1248]|f[248]")


@contextmanager
def reading_raw(path: Path, what: str) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into an error that names it.

    Args:
        path:
            File that is read.
        what:
            Description of what it should hold.

    Raises:
        GraphError:
            If anything but a missing file comes out of the block.
    """
    try:
        yield
    except (GraphError, FileNotFoundError):
        raise
    except Exception as error:  # a damaged archive may raise anything
        raise GraphError(
            f"{path}: expected {what} ({brief(error)}); remove it and load again"
        ) from error


def brief(error: BaseException) -> str:
    """Return an error as a short line, with its kind where the message alone says too little."""
    name = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return name + short_message(error)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading, but not a pipe, which would be waited for.

    Raises:
        OSError:
            If it cannot be opened.
        ValueError:
            If it is something else than a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is no regular file but a folder, a pipe or a device")
    return open(descriptor, "rb")


def read_pickle(path: Path) -> Any:
    """Return what :func:`.read_pickled` makes of a file.

    Raises:
        ValueError:
            If it is damaged, too long, or has instructions that no array needs.
    """
    with open_regular(path) as file:
        content = file.read(_MAX_PICKLE + 1)
    if len(content) > _MAX_PICKLE:
        raise ValueError(f"it has over {_MAX_PICKLE:,} bytes")
    return read_pickled(content)


def pickled_rows(value: Any) -> Array:
    """Return a pickled array or sparse matrix as a dense array of two dimensions.

    Args:
        value:
            Value of :func:`read_pickle`.

    Raises:
        ValueError:
            If it is neither, or does not fit itself.
    """
    if isinstance(value, Described) and value.kind == "matrix":
        state = value.state if isinstance(value.state, dict) else {}
        data, indices, indptr = (
            _pickled_array(state.get(name)) for name in ("data", "indices", "indptr")
        )
        rows, columns = check_csr(data, indices, indptr, state.get("_shape"))
        check_size(rows, columns)
        matrix: Array = sp.csr_matrix((data, indices, indptr), (rows, columns)).toarray()
        return matrix
    array = _pickled_array(value)
    if array.ndim != 2:
        raise ValueError(f"expected rows and columns, got {array.ndim} dimensions")
    return array


def read_npz(path: Path, names: Iterable[str]) -> dict[str, Array]:
    """Return arrays of numbers from an archive of NumPy.

    Raises:
        ValueError:
            If one is missing, holds something else than numbers, or is not as long as it says.
        zipfile.BadZipFile:
            If the archive is damaged.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        return {name: _member(archive, name) for name in names}


def read_table(path: Path, dtype: type, columns: int | None = None) -> Array:
    """Return a table of numbers, ``[rows, columns]``, from lines of text.

    Args:
        path:
            File with commas between the columns; unpacked if its name ends in ``.gz``.
        dtype:
            Type of the numbers.
        columns:
            Number of columns that it must have.

    Raises:
        ValueError:
            If it is too long, empty, or something in it is no such number.
    """
    with open_regular(path) as file:
        unpacked: Any = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        with io.TextIOWrapper(unpacked, "ascii") as text, warnings.catch_warnings():
            warnings.simplefilter("error")  # an empty table is told by a warning
            table: Array = np.loadtxt(
                _lines(text), dtype=dtype, delimiter=",", comments=None, ndmin=2
            )
    if columns is not None and table.shape[1] != columns:
        raise ValueError(f"expected {columns} columns, got {table.shape[1]}")
    return table


def check_csr(data: Array, indices: Array, indptr: Array, shape: Any) -> tuple[int, int]:
    """Check the three arrays of a sparse matrix in rows, and return its shape.

    Args:
        data:
            Values, ``[n]``.
        indices:
            Column of each value, ``[n]``.
        indptr:
            Places at which the rows begin, and the end of the last one, ``[rows + 1]``.
        shape:
            Number of rows and of columns, as the file says.

    Raises:
        ValueError:
            If one is no such array, or an index is out of range.
    """
    rows, columns = _shape(shape)
    check_column(data, "values of a matrix", "biuf", len(indices))
    check_places(indices, "columns of a matrix", columns)
    check_column(indptr, "rows of a matrix", "iu", rows + 1)
    if int(indptr[0]) != 0 or int(indptr[-1]) != len(indices):
        raise ValueError(
            f"rows of a matrix: expected places from 0 to {len(indices)}, got "
            f"{int(indptr[0])} to {int(indptr[-1])}"
        )
    if bool((indptr[1:] < indptr[:-1]).any()):
        raise ValueError("rows of a matrix: expected places in rising order, got others")
    return rows, columns


def check_column(values: Array, what: str, kinds: str, length: int | None = None) -> None:
    """Check that an array has one dimension, a kind of numbers and a length.

    Args:
        values:
            Array to check.
        what:
            Name of it, for the error.
        kinds:
            Letters of NumPy for the kinds of numbers that it may have.
        length:
            Number of values that it must have.

    Raises:
        ValueError:
            If it is another array.
    """
    is_column = values.ndim == 1 and values.dtype.kind in kinds
    if not is_column or length not in (None, len(values)):
        size = "n" if length is None else f"{length}"
        words = "whole numbers" if kinds == "iu" else "numbers"
        raise ValueError(
            f"{what}: expected {words} [{size}], got {values.dtype} {list(values.shape)}"
        )


def check_places(values: Array, what: str, end: int, length: int | None = None) -> None:
    """Check that an array holds whole numbers from 0 to below ``end``.

    Raises:
        ValueError:
            If it does not.
    """
    check_column(values, what, "iu", length)
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < end:
        raise ValueError(
            f"{what}: expected 0 to {end - 1}, got {int(values.min())} to {int(values.max())}"
        )


def check_size(rows: int, columns: int) -> None:
    """Check that a matrix with all its zeros is not too large.

    Raises:
        ValueError:
            If it has more than :data:`MAX_VALUES` values.
    """
    if rows * columns > MAX_VALUES:
        raise ValueError(
            f"a matrix [{rows}, {columns}]: expected at most {MAX_VALUES:,} values in all"
        )


def _shape(shape: Any) -> tuple[int, int]:
    """Return the number of rows and of columns."""
    sizes = shape.tolist() if isinstance(shape, np.ndarray) else shape
    if (
        not isinstance(sizes, list | tuple)
        or len(sizes) != 2
        or not all(type(size) is int and 0 <= size < 2**31 for size in sizes)
    ):
        raise ValueError("shape of a matrix: expected two whole numbers below 2^31, got others")
    return sizes[0], sizes[1]


def _pickled_array(value: Any) -> Array:
    """Return an array of a pickle, of the byte order of this machine."""
    state = value.state if isinstance(value, Described) and value.kind == "array" else None
    if not isinstance(state, tuple) or len(state) != 5:
        raise ValueError("expected an array, got something else")
    _, shape, described, by_columns, content = state
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("shape of an array: expected whole numbers, got others")
    if isinstance(content, str):  # of Python 2
        content = content.encode("latin1")
    dtype = _dtype(described)
    nbytes = math.prod(shape) * dtype.itemsize
    if not isinstance(content, bytes) or len(content) != nbytes or len(shape) > 2:
        raise ValueError("an array: expected as many bytes as its shape says, got others")
    return _shaped(content, dtype, shape, bool(by_columns))


def _dtype(described: Any) -> np.dtype[Any]:
    """Return a type of numbers that a pickle describes."""
    code = byte_order = None
    if isinstance(described, Described) and described.kind == "dtype":
        code = described.arguments[0] if described.arguments else None
        state = described.state if isinstance(described.state, tuple) else ()
        byte_order = state[1] if len(state) > 1 else "="
    if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
        raise ValueError("type of an array: expected numbers, got something else")
    if byte_order not in ("<", ">", "|", "="):
        raise ValueError("type of an array: expected a byte order, got something else")
    return np.dtype(byte_order + code)


def _shaped(
    content: bytes | bytearray, dtype: np.dtype[Any], shape: tuple[int, ...], by_columns: bool
) -> Array:
    """Return bytes as an array of the byte order of this machine, which may be written to."""
    flat: Array = np.frombuffer(content, dtype)
    flat = flat.astype(dtype.newbyteorder("="), copy=not flat.flags.writeable)
    return flat.reshape(shape, order="F" if by_columns else "C")


def _member(archive: zipfile.ZipFile, name: str) -> Array:
    """Read an array of an archive, as long as its header and the archive say alike."""
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise ValueError(f"expected an array {name}, got none") from None
    with archive.open(info) as file:
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"array {name}: expected a header of version 1 or 2, got another")
        shape, by_columns, dtype = _HEADERS[version](file)
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            raise ValueError(f"array {name}: expected numbers, got {dtype!s:.60}")
        count = math.prod(shape)
        if not 0 <= count <= MAX_VALUES or min(shape, default=0) < 0:
            raise ValueError(f"array {name}: expected at most {MAX_VALUES:,} values")
        content = bytearray()  # grows as far as there are bytes, whatever the header claims
        while len(content) <= count * dtype.itemsize and (piece := file.read(_PIECE)):
            content += piece
    if len(content) != count * dtype.itemsize:
        raise ValueError(f"array {name}: expected as many bytes as its shape says, got others")
    return _shaped(content, dtype, shape, by_columns)


_HEADERS: Mapping[Any, Any] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    """Yield the lines of a text, which may unpack to more than any memory holds."""
    length = 0
    while line := text.readline(_MAX_LINE):
        length += len(line)
        if len(line) == _MAX_LINE or length > _MAX_TEXT:
            raise ValueError(f"it has over {_MAX_TEXT:,} characters, or {_MAX_LINE:,} in a line")
        yield line
