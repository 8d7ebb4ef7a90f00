"""Node features at their bit width: rows of one degree bucket after the other in one buffer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from sgquant_optuna.bit_widths import FULL_PRECISION
from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed.bit_array import pack_integers, read_integers
from sgquant_optuna.packed.fast import has_kernels, plane_table
from sgquant_optuna.packed.file import read_store, write_store
from sgquant_optuna.quantization.affine import Rounding, dequantize, quantize
from sgquant_optuna.quantization.layout import bits_for, integers_nbytes, row_bytes
from sgquant_optuna.quantization.packing import pack, unpack

KIND = "packed_features"
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

    def __post_init__(self) -> None:
        """Check the parts, and derive the place of every row from the buckets."""
        num_nodes, num_buckets = len(self.bucket), len(self.bit_widths)
        if num_nodes and int(self.bucket.max()) >= num_buckets:
            raise PackingError(
                f"degree buckets: expected 0 to {num_buckets - 1}, got {int(self.bucket.max())}"
            )
        lines = num_nodes if self.ranges_by_row else num_buckets
        shapes = {(lines, 1)} if self.ranges_by_row else {(lines, 1), (lines, self.num_columns)}
        if tuple(self.scale.shape) not in shapes or self.scale.shape != self.zero_point.shape:
            raise PackingError(
                f"scale and zero point: expected one of {sorted(shapes)}, got "
                f"{list(self.scale.shape)} and {list(self.zero_point.shape)}"
            )
        if not (torch.isfinite(self.scale).all() and torch.isfinite(self.zero_point).all()):
            raise PackingError("scale and zero point: expected finite numbers")
        if bool((self.scale <= 0).any()):
            raise PackingError("scale: expected steps above 0")
        counts = torch.bincount(self.bucket.long(), minlength=num_buckets).tolist()
        sizes = [counts[b] * _row_bytes(self.num_columns, self.bit_widths[b]) for b in self.order]
        if self.data.dtype != torch.uint8 or self.data.shape != (sum(sizes),):
            raise PackingError(
                f"packed rows: expected {sum(sizes)} bytes, got {self.data.dtype} "
                f"{list(self.data.shape)}"
            )
        starts = dict(zip(self.order, accumulate(sizes, initial=0), strict=False))
        position = torch.empty(num_nodes, dtype=torch.int32, device=self.bucket.device)
        for b, count in enumerate(counts):
            position[self.bucket == b] = torch.arange(
                count, dtype=torch.int32, device=self.bucket.device
            )
        object.__setattr__(self, "_counts", tuple(counts))
        object.__setattr__(self, "_starts", tuple(starts[b] for b in range(num_buckets)))
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
                If ``x`` is no float32 matrix, holds NaN, or does not fit the buckets.
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
        counts = torch.bincount(bucket.long(), minlength=len(bit_widths)).tolist()
        size = sum(n * _row_bytes(x.shape[1], q) for n, q in zip(counts, bit_widths, strict=True))
        out = cls(
            torch.empty(size, dtype=torch.uint8, device=x.device),
            bucket.to(torch.uint8),
            tuple(bit_widths),
            scale.float().contiguous(),
            zero_point.float().contiguous(),
            x.shape[1],
            ranges_by_row,
        )
        fast = has_kernels() and x.device.type == "cpu" if fast is None else fast
        for b, width in enumerate(out.bit_widths):
            packed = out.packed_rows(b)
            if fast and width != FULL_PRECISION:
                out._pack_compiled(x.detach().contiguous(), b, rounding)
                continue
            for rows, nodes in out.blocks(b):
                block = x[nodes]
                if width == FULL_PRECISION:
                    if torch.isnan(block).any():
                        raise ValueError("features: expected numbers, got NaN")
                    packed[rows] = block.view(torch.uint8)
                else:
                    line = nodes if ranges_by_row else b
                    codes = quantize(
                        block, out.scale[line], out.zero_point[line], width, rounding=rounding
                    )
                    packed[rows] = pack(codes, width)
        return out

    def _pack_compiled(self, x: Tensor, bucket: int, rounding: Rounding) -> None:
        from sgquant_optuna.packed import kernels

        nodes = (self.bucket == bucket).nonzero()[:, 0]
        width = self.bit_widths[bucket]
        with kernels.LOCK:
            num_nan = kernels.pack_rows(
                x.numpy(),
                nodes.numpy(),
                (nodes if self.ranges_by_row else torch.full_like(nodes, bucket)).numpy(),
                self.scale.numpy(),
                self.zero_point.numpy(),
                width,
                plane_table([width])[0],
                rounding == "nearest",
                self.packed_rows(bucket).numpy(),
            )
        if num_nan:
            raise ValueError(f"features: expected numbers, got NaN in {num_nan} rows")

    @property
    def shape(self) -> tuple[int, int]:
        """Nodes N and features F."""
        return len(self.bucket), self.num_columns

    @property
    def order(self) -> tuple[int, ...]:
        """Buckets as they lie in the buffer."""
        return tuple(
            sorted(
                range(len(self.bit_widths)),
                key=lambda b: (self.bit_widths[b] != FULL_PRECISION, b),
            )
        )

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
        size = _row_bytes(self.num_columns, self.bit_widths[bucket])
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
                Nodes, ``[R]`` int64; may repeat.

        Returns:
            Features, ``[R, F]`` float32.

        Raises:
            IndexError:
                If a node is not one of ``0 ... N - 1``.
        """
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(self.bucket):
            raise IndexError(
                f"nodes: expected 0 to {len(self.bucket) - 1}, got "
                f"{int(index.min())} to {int(index.max())}"
            )
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
        bits = bits_for(len(self.bit_widths) - 1)
        write_store(
            path,
            KIND,
            {
                "shape": list(self.shape),
                "bit_widths": list(self.bit_widths),
                "ranges_by_row": self.ranges_by_row,
            },
            {
                "data": self.data,
                "bucket": pack_integers(self.bucket.long(), bits),
                "scale": self.scale,
                "zero_point": self.zero_point,
            },
        )

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> PackedFeatures:
        """Map a saved file into memory.

        Args:
            path:
                File that :meth:`save` made.
            verify:
                Whether to compare the checksum, which reads the whole file once.

        Raises:
            PackingError:
                If the file is cut, altered, or not of this kind.
        """
        fields, tensors = read_store(path, KIND, verify=verify)
        try:
            num_nodes, num_columns = fields["shape"]
            widths = tuple(int(width) for width in fields["bit_widths"])
            bucket = read_integers(tensors["bucket"], num_nodes, bits_for(len(widths) - 1))
            return cls(
                tensors["data"],
                bucket.to(torch.uint8),
                widths,
                tensors["scale"],
                tensors["zero_point"],
                int(num_columns),
                bool(fields["ranges_by_row"]),
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise PackingError(f"{path}: its header does not fit its rows") from error


def _row_bytes(num_columns: int, bit_width: int) -> int:
    return 4 * num_columns if bit_width == FULL_PRECISION else row_bytes(num_columns, bit_width)
