"""Node features at their bit width: rows of one degree bucket after the other in one buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgquant_optuna.packed.checks import check_widths
from sgquant_optuna.packed.container import read_checksum
from sgquant_optuna.packed.fast import has_kernels
from sgquant_optuna.packed.feature_checks import bucket_order, check_features, stored_row_bytes
from sgquant_optuna.packed.feature_file import open_features, reopen_features, save_features
from sgquant_optuna.packed.feature_packing import pack_bucket
from sgquant_optuna.quantization.affine import dequantize
from sgquant_optuna.quantization.layout import bits_for, integers_nbytes
from sgquant_optuna.quantization.packing import unpack
from sgquant_optuna.quantization.quantizer_config import Rounding
from sgquant_optuna.quantization.sites import FULL_PRECISION

BLOCK_ROWS = 1024
"""Rows that are float32 at one time."""


@dataclass(frozen=True, eq=False)
class PackedFeatures:
    """Node features ``[N, F]`` of which every row takes the bits of its degree bucket.

    A value is ``scale * code + zero_point``. Rows of a bucket lie together in node order, and the
    buckets lie in the order of :attr:`order`: those of 32 bits, which hold float32, come first so
    that they are aligned.

    Args:
        data:
            All rows, flat uint8.
        bucket:
            Degree bucket of every node, ``[N]`` uint8.
        bit_widths:
            Width of each bucket: 1-8, 16 or 32.
        scale:
            Step between codes, ``[B, 1]`` (one range a bucket), ``[B, F]`` (one a column) or
            ``[N, 1]`` (one a row), float32.
        zero_point:
            Real value of code 0, same shape.
        num_columns:
            Number of features F.
        ranges_by_row:
            Whether scale and zero point are ``[N, 1]``.

    Raises:
        PackingError:
            If the parts do not fit one another.
    """

    data: Tensor
    bucket: Tensor
    bit_widths: tuple[int, ...]
    scale: Tensor
    zero_point: Tensor
    num_columns: int
    ranges_by_row: bool = False
    _counts: tuple[int, ...] = field(init=False, repr=False)
    _starts: tuple[int, ...] = field(init=False, repr=False)
    _position: Tensor = field(init=False, repr=False)
    _origin: tuple[str, int] | None = field(init=False, repr=False, default=None)
    """Path and checksum of the file that is mapped."""

    def __post_init__(self) -> None:
        """Check the parts, and derive the place of every row from the buckets."""
        counts, starts = check_features(
            self.data,
            self.bucket,
            self.bit_widths,
            self.scale,
            self.zero_point,
            self.num_columns,
            self.ranges_by_row,
        )
        position = torch.empty(len(self.bucket), dtype=torch.int32, device=self.bucket.device)
        for b, count in enumerate(counts):
            position[self.bucket == b] = torch.arange(
                count, dtype=torch.int32, device=self.bucket.device
            )
        object.__setattr__(self, "_counts", counts)
        object.__setattr__(self, "_starts", starts)
        object.__setattr__(self, "_position", position)

    @classmethod
    def from_dense(
        cls,
        x: Tensor,
        bucket: Tensor | None,
        bit_widths: Sequence[int],
        scale: Tensor,
        zero_point: Tensor,
        *,
        rounding: Rounding = "nearest",
        ranges_by_row: bool = False,
        fast: bool | None = None,
    ) -> PackedFeatures:
        """Quantize and pack features, a block of rows at a time.

        Args:
            x:
                Features, ``[N, F]`` float32.
            bucket:
                Degree bucket of each row, ``[N]``, or ``None`` for one bucket.
            bit_widths:
                Width of each bucket: 1-8, 16 or 32 (stays float32).
            scale:
                Step between codes, ``[B, 1]``, ``[B, F]`` or ``[N, 1]``.
            zero_point:
                Real value of code 0, same shape.
            rounding:
                ``"nearest"`` or the paper's ``"floor"``.
            ranges_by_row:
                Whether scale and zero point are ``[N, 1]``.
            fast:
                Whether to use the compiled kernel, which makes the same bytes; ``None`` takes it
                where it is installed and ``x`` is on the CPU.

        Raises:
            ValueError:
                If ``x`` is no float32 matrix, holds NaN (or infinity where it stays float32), or
                does not fit the buckets.
            PackingError:
                If ranges or widths do not fit.
        """
        if x.dim() != 2 or x.dtype != torch.float32:
            raise ValueError(f"features: expected float32 [N, F], got {x.dtype} {list(x.shape)}")
        if bucket is None:
            bucket = torch.zeros(len(x), dtype=torch.uint8, device=x.device)
        if bucket.shape != (len(x),) or not 1 <= len(bit_widths) <= 256:
            raise ValueError(
                f"degree bucket: expected [{len(x)}] and 1-256 widths, got "
                f"{list(bucket.shape)} and {len(bit_widths)}"
            )
        if len(x) and not 0 <= int(bucket.min()) <= int(bucket.max()) < len(bit_widths):
            raise ValueError(
                f"degree bucket: expected 0 to {len(bit_widths) - 1}, got "
                f"{int(bucket.min())} to {int(bucket.max())}"
            )
        bit_widths = check_widths(tuple(bit_widths))
        counts = torch.bincount(bucket.long(), minlength=len(bit_widths)).tolist()
        size = sum(
            n * stored_row_bytes(x.shape[1], q) for n, q in zip(counts, bit_widths, strict=True)
        )
        out = cls(
            torch.empty(size, dtype=torch.uint8, device=x.device),
            bucket.to(torch.uint8),
            bit_widths,
            scale.float().contiguous(),
            zero_point.float().contiguous(),
            x.shape[1],
            ranges_by_row,
        )
        fast = has_kernels() and x.device.type == "cpu" if fast is None else fast
        for b in range(len(out.bit_widths)):
            pack_bucket(out, x.detach(), b, rounding, fast=fast)
        return out

    @property
    def shape(self) -> tuple[int, int]:
        """Nodes N and features F."""
        return len(self.bucket), self.num_columns

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return self.data.device

    @property
    def order(self) -> tuple[int, ...]:
        """Buckets as they lie in the buffer."""
        return bucket_order(self.bit_widths)

    @property
    def starts(self) -> tuple[int, ...]:
        """First byte of each bucket in the buffer."""
        return self._starts

    @property
    def position(self) -> Tensor:
        """Place of each node in its bucket, ``[N]`` int32; derived, so not stored."""
        return self._position

    @property
    def stored_nbytes(self) -> int:
        """Bytes that have to be kept: rows, ranges, and packed bucket ids where B > 1."""
        ids = integers_nbytes(len(self.bucket), bits_for(len(self.bit_widths) - 1))
        return self.data.nbytes + self.scale.nbytes + self.zero_point.nbytes + ids

    @property
    def nbytes(self) -> int:
        """Bytes in memory: rows, ranges, and five bytes a node that find its row."""
        parts = (self.data, self.scale, self.zero_point, self.bucket, self._position)
        return sum(part.nbytes for part in parts)

    def packed_rows(self, bucket: int) -> Tensor:
        """View of the packed rows of a bucket, ``[N_b, bytes of a row]`` uint8."""
        size = stored_row_bytes(self.num_columns, self.bit_widths[bucket])
        start, count = self._starts[bucket], self._counts[bucket]
        return self.data[start : start + count * size].view(count, size)

    def blocks(self, bucket: int, block_rows: int = BLOCK_ROWS) -> Iterator[tuple[slice, Tensor]]:
        """Rows of a bucket block by block: where they lie in it, and their nodes."""
        nodes = (self.bucket == bucket).nonzero()[:, 0]
        for start in range(0, len(nodes), block_rows):
            rows = slice(start, min(start + block_rows, len(nodes)))
            yield rows, nodes[rows]

    def rows(self, index: Tensor) -> Tensor:
        """Bring some rows back to float32.

        Args:
            index:
                Nodes, ``[R]`` int64 on any device; may repeat.

        Returns:
            Features, ``[R, F]`` float32, on the device of the packed ones.

        Raises:
            IndexError:
                If a node is not one of ``0 ... N - 1``.
        """
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(self.bucket):
            raise IndexError(
                f"nodes: expected 0 to {len(self.bucket) - 1}, got "
                f"{int(index.min())} to {int(index.max())}"
            )
        index = index.to(self.bucket.device)
        out = self.scale.new_empty(len(index), self.num_columns)
        of_row = self.bucket[index]
        for b, width in enumerate(self.bit_widths):
            where = (of_row == b).nonzero()[:, 0]
            if not len(where):
                continue
            nodes = index[where]
            packed = self.packed_rows(b)[self._position[nodes].long()]
            if width == FULL_PRECISION:
                out[where] = packed.view(torch.float32)
            else:
                line = nodes if self.ranges_by_row else b
                codes = unpack(packed, self.num_columns, width)
                out[where] = dequantize(codes, self.scale[line], self.zero_point[line])
        return out

    def to_dense(self) -> Tensor:
        """Bring everything back to float32, ``[N, F]``."""
        out = self.scale.new_empty(self.shape)
        for nodes in torch.arange(len(self.bucket), device=out.device).split(BLOCK_ROWS):
            out[nodes] = self.rows(nodes)
        return out

    def to(self, device: torch.device | str) -> PackedFeatures:
        """Move to a device."""
        return PackedFeatures(
            self.data.to(device),
            self.bucket.to(device),
            self.bit_widths,
            self.scale.to(device),
            self.zero_point.to(device),
            self.num_columns,
            self.ranges_by_row,
        )

    def save(self, path: str | Path) -> None:
        """Write to a file of safetensors with a versioned header."""
        save_features(self, path)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> PackedFeatures:
        """Map a saved file into memory.

        Args:
            path:
                File that :meth:`save` made.
            verify:
                Whether to compare the checksum and look for NaN in float32 rows, which reads the
                whole file.

        Raises:
            PackingError:
                If the file is cut, altered, or not of this kind, or its parts do not fit one
                another.
        """
        opened = open_features(cls, path, verify=verify)
        object.__setattr__(opened, "_origin", (str(Path(path).resolve()), read_checksum(path)))
        return opened

    def __reduce__(self) -> tuple[Callable[..., PackedFeatures], tuple[Any, ...]]:
        """Pickle a mapped file by its path, anything else by its bytes."""
        if self._origin is not None:
            return reopen_features, (type(self), *self._origin)
        parts = (self.data, self.bucket, self.scale, self.zero_point)
        # A view would take all the memory that it looks at along.
        data, bucket, scale, zero_point = (part.clone() for part in parts)
        ranges = scale, zero_point, self.num_columns, self.ranges_by_row
        return type(self), (data, bucket, self.bit_widths, *ranges)
