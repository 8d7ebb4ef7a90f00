"""The container of packed files: safetensors, with a versioned header and a checksum.

Safetensors checks its own frame only. A flipped bit in a code, a scale or a width would come back
as a wrong number, so the header has a checksum of the fields and of all tensors.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.storage.out_files import replacing

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

VERSION = 3
KEY = "sgquant_optuna"
"""Name of our header in the metadata of safetensors."""
_DAMAGES = (
    SafetensorError,
    OSError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,  # of torch; RecursionError is one
    TypeError,
    ValueError,
)
CHECKSUM_BYTES = 1 << 24
"""Bytes of a piece: a mapped file need not fit in memory."""


def write_container(
    path: str | Path, kind: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write fields and tensors to a path where nothing is that matters.

    Args:
        path:
            File to write.
        kind:
            Name of what the file holds; :func:`read_container` asks for the same.
        fields:
            Header, ready for JSON.
        tensors:
            Tensors by name; moved to the CPU.

    Raises:
        OSError:
            If it cannot be written.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"version": VERSION, "kind": kind, "fields": dict(fields)}
    checksum = _checksum(header, on_cpu)
    try:
        save_file(on_cpu, path, {KEY: json.dumps(header | {"crc32": checksum}, sort_keys=True)})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def replace_container(
    path: str | Path, kind: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write fields and tensors as a file that a user asked for: whole, or the old file stays.

    Args:
        path:
            File to write, or a link to it.
        kind:
            Name of what the file holds.
        fields:
            Header, ready for JSON.
        tensors:
            Tensors by name; moved to the CPU.

    Raises:
        ValueError:
            If the path leads to something else than a regular file, or cannot be written.
    """
    with replacing(path) as part:
        write_container(part, kind, fields, tensors)


def read_container(
    path: str | Path, kind: str, *, verify: bool = True
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Map a file into memory; its bytes are read from disk when they are used.

    Args:
        path:
            File of :func:`write_container`.
        kind:
            Name of what the file must hold.
        verify:
            Whether to compare the checksum, which reads the whole file once.

    Returns:
        Fields and tensors.

    Raises:
        PackingError:
            If the file is cut, altered, of another version or kind, or not ours.
    """
    with _open(path) as file:
        header = _header(file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checksum = header.pop("crc32")
        version, found, fields = header["version"], header["kind"], dict(header["fields"])
    if version != VERSION:
        raise PackingError(
            f"{path}: expected version {VERSION}, got {version!r:.60}; use the version of "
            f"sgquant_optuna that made the file, or export it again"
        )
    if found != kind:
        raise PackingError(f"{path}: expected {kind}, got {found!r:.60}")
    if verify and checksum != _checksum(header, tensors):
        raise PackingError(f"{path}: its checksum differs; the file was altered, copy it again")
    return fields, tensors


def read_checksum(path: str | Path) -> int:
    """Return the checksum in the header of a file; its tensors are not read.

    Raises:
        PackingError:
            If the file is not ours.
    """
    with _open(path) as file:
        return int(_header(file)["crc32"])


@contextmanager
def _open(path: str | Path) -> Iterator[Any]:
    """Open a file; any damage of its frame or header is one error."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"packed file: expected a file at {path}, found none")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except _DAMAGES as error:
        raise PackingError(f"{path}: not a packed file of ours, or a damaged one") from error


def _header(file: Any) -> dict[str, Any]:
    return dict(json.loads((file.metadata() or {})[KEY]))


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    layout = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
    pieces = (
        piece.numpy()
        for name in sorted(tensors)
        for piece in tensors[name].reshape(-1).view(torch.uint8).split(CHECKSUM_BYTES)
    )
    return checksum(header, layout, pieces)


def checksum(
    header: Mapping[str, Any], layout: Mapping[str, list[Any]], pieces: Iterable[Buffer]
) -> int:
    """Return the checksum of a file.

    Args:
        header:
            Version, kind and fields.
        layout:
            Type of torch and shape of each tensor, by name.
        pieces:
            Bytes of the tensors, one after the other in the order of their names.
    """
    value = zlib.crc32(json.dumps([header, layout], sort_keys=True).encode())
    for piece in pieces:
        value = zlib.crc32(piece, value)
    return value
