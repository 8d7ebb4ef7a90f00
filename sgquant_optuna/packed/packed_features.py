"""Node features at their bit width: rows of one degree bucket after the other in one buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed import kernels
from sgquant_optuna.packed.blocks import BLOCK_ROWS
from sgquant_optuna.packed.checks import (
    MAX_COUNT,
    check_buckets,
    check_count,
    check_finite,
    check_flag,
    check_ranges,
    check_shape,
    check_tensor,
    check_widths,
    top_codes,
)
from sgquant_optuna.packed.container import read_checksum, read_container, replace_container
from sgquant_optuna.packed.indexing import places_in_buckets
from sgquant_optuna.packed.integers import pack_buckets, read_buckets
from sgquant_optuna.quantization.affine import dequantize, quantize
from sgquant_optuna.quantization.layout import bits_for, integers_nbytes, row_bytes
from sgquant_optuna.quantization.packing import pack, unpack
from sgquant_optuna.quantization.quantizer_config import Rounding
from sgquant_optuna.quantization.sites import FULL_PRECISION

KIND = "packed_features"


@dataclass(frozen=True, eq=False)
class PackedFeatures:
    """Node features ``[N, F]`` of which every row takes the bits of its degree bucket.

    A value is ``scale * code + zero_point``. Rows of a bucket lie together in node order. Buckets
    of 32 bits, which hold float32, lie first in the buffer, so that they are aligned.

    Args:
        data:
            Bytes of all rows, flat uint8.
        bucket:
            Degree bucket of each node, ``[N]`` uint8.
        bit_widths:
            Bit width of each bucket: 1-8, 16 or 32.
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
    """Path and checksum of the mapped file."""

    def __post_init__(self) -> None:
        """Check the parts, and derive the place of every row from the buckets."""
        counts, starts = _check_parts(self)
        object.__setattr__(self, "_counts", counts)
        object.__setattr__(self, "_starts", starts)
        object.__setattr__(self, "_position", places_in_buckets(self.bucket, counts))

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
                Bit width of each bucket: 1-8, 16 or 32 (stays float32).
            scale:
                Step between codes, ``[B, 1]``, ``[B, F]`` or ``[N, 1]``.
            zero_point:
                Real value of code 0, same shape.
            rounding:
                ``"nearest"`` or the paper's ``"floor"``.
            ranges_by_row:
                Whether scale and zero point are ``[N, 1]``.
            fast:
                Whether to use the compiled kernel, which makes the same bytes; by default where it
                is installed and ``x`` is on the CPU.

        Raises:
            ValueError:
                If ``x`` is no float32 matrix, holds NaN (or infinity where it stays float32), or
                does not fit the buckets.
            PackingError:
                If ranges or widths do not fit.
        """
        bucket = _checked_bucket(x, bucket, len(bit_widths))
        bit_widths = check_widths(tuple(bit_widths))
        counts = torch.bincount(bucket.long(), minlength=len(bit_widths)).tolist()
        sizes = [_row_bytes(x.shape[1], width) for width in bit_widths]
        num_bytes = sum(count * size for count, size in zip(counts, sizes, strict=True))
        out = cls(
            torch.empty(num_bytes, dtype=torch.uint8, device=x.device),
            bucket,
            bit_widths,
            scale.float().contiguous(),
            zero_point.float().contiguous(),
            x.shape[1],
            ranges_by_row,
        )
        fast = kernels.has_kernels(x.device) if fast is None else fast
        for number in range(len(bit_widths)):
            out._pack_bucket(x.detach(), number, rounding, fast=fast)
        return out

    @property
    def shape(self) -> tuple[int, int]:
        """Number of nodes N and of features F."""
        return len(self.bucket), self.num_columns

    @property
    def device(self) -> torch.device:
        """Device of all parts."""
        return self.data.device

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

    def bucket_blocks(
        self, bucket: int, block_rows: int = BLOCK_ROWS
    ) -> Iterator[tuple[slice, Tensor]]:
        """Cut the rows of a bucket into blocks: their places in the bucket, and their nodes."""
        nodes = (self.bucket == bucket).nonzero()[:, 0]
        for start in range(0, len(nodes), block_rows):
            rows = slice(start, min(start + block_rows, len(nodes)))
            yield rows, nodes[rows]

    def decode(
        self, packed: Tensor, bucket: int, nodes: Tensor, columns: slice | None = None
    ) -> Tensor:
        """Bring packed rows of one bucket back to float32.

        Args:
            packed:
                Some of :meth:`packed_rows`, ``[n, bytes of a row]``.
            bucket:
                Degree bucket of the rows.
            nodes:
                Nodes of the rows, ``[n]``.
            columns:
                Run of columns that is wanted, with both ends; all by default.

        Returns:
            Features, ``[n, columns]`` float32.
        """
        start, stop = (0, self.num_columns) if columns is None else (columns.start, columns.stop)
        width = self.bit_widths[bucket]
        if width == FULL_PRECISION:
            return packed.view(torch.float32)[:, start:stop]
        line = nodes if self.ranges_by_row else slice(bucket, bucket + 1)
        of_columns = slice(start, stop) if self.scale.shape[1] > 1 else slice(None)
        codes = unpack(packed, self.num_columns, width, start, stop)
        scale, zero_point = self.scale[line, of_columns], self.zero_point[line, of_columns]
        return dequantize(codes, scale, zero_point)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Bring all rows back block by block: their nodes, and a dense matrix."""
        for number in range(len(self.bit_widths)):
            packed = self.packed_rows(number)
            for rows, nodes in self.bucket_blocks(number):
                yield nodes, self.decode(packed[rows], number, nodes)

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
        for number in range(len(self.bit_widths)):
            where = (of_row == number).nonzero()[:, 0]
            if len(where):
                nodes = index[where]
                packed = self.packed_rows(number)[self._position[nodes].long()]
                out[where] = self.decode(packed, number, nodes)
        return out

    def to_dense(self) -> Tensor:
        """Bring everything back to float32, ``[N, F]``."""
        out = self.scale.new_empty(self.shape)
        for nodes, block in self.blocks():
            out[nodes] = block
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
        """Write to a file of safetensors with a versioned header, in the place of an older one.

        Raises:
            ValueError:
                If the path leads to something else than a regular file, or cannot be written.
        """
        fields = {
            "shape": list(self.shape),
            "bit_widths": list(self.bit_widths),
            "ranges_by_row": self.ranges_by_row,
        }
        tensors = {
            "data": self.data,
            "bucket": pack_buckets(self.bucket, len(self.bit_widths)),
            "scale": self.scale,
            "zero_point": self.zero_point,
        }
        replace_container(path, KIND, fields, tensors)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> PackedFeatures:
        """Map a saved file into memory.

        Args:
            path:
                File that :meth:`save` made.
            verify:
                Whether to compare the checksum and to look for NaN in float32 rows, which reads
                the whole file.

        Raises:
            PackingError:
                If the file is cut, altered, or not of this kind, or its parts do not fit one
                another.
        """
        fields, tensors = read_container(path, KIND, verify=verify)
        try:
            opened = cls(*_parts_of_file(fields, tensors))
            if verify:
                check_full_rows(opened)
        except PackingError as error:
            raise PackingError(f"{path}: {error}") from error
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise PackingError(f"{path}: its header does not fit its rows") from error
        object.__setattr__(opened, "_origin", (str(Path(path).resolve()), read_checksum(path)))
        return opened

    def __reduce__(self) -> tuple[Callable[..., PackedFeatures], tuple[Any, ...]]:
        """Pickle a mapped file by its path, anything else by its bytes."""
        if self._origin is not None:
            return _reopen, (type(self), *self._origin)
        parts = (self.data, self.bucket, self.scale, self.zero_point)
        # Pickling a view would include its whole base tensor.
        data, bucket, scale, zero_point = (part.clone() for part in parts)
        ranges = scale, zero_point, self.num_columns, self.ranges_by_row
        return type(self), (data, bucket, self.bit_widths, *ranges)

    def _pack_bucket(self, x: Tensor, bucket: int, rounding: Rounding, *, fast: bool) -> None:
        """Write the rows of one degree bucket of ``x``, ``[N, F]``, into the buffer."""
        packed, width = self.packed_rows(bucket), self.bit_widths[bucket]
        # The kernel takes contiguous rows: copying all at once would take as much again.
        whole = fast and width != FULL_PRECISION and x.is_contiguous()
        block_rows = (max(1, len(x)),) if whole else ()
        for rows, nodes in self.bucket_blocks(bucket, *block_rows):
            block = x if whole else x[nodes].contiguous()
            if width == FULL_PRECISION:
                # A code would stand for the end of its range; a float32 row keeps its value.
                if not torch.isfinite(block).all():
                    raise ValueError(
                        "features: expected finite numbers at 32 bits, got NaN or inf"
                    )
                packed[rows] = block.view(torch.uint8)
            elif fast:
                places = nodes if whole else torch.arange(len(nodes))
                line = nodes if self.ranges_by_row else torch.full_like(nodes, bucket)
                ranges, to_nearest = (self.scale, self.zero_point), rounding == "nearest"
                kernels.pack_rows(block, places, line, *ranges, width, to_nearest, packed[rows])
            else:
                at = nodes if self.ranges_by_row else bucket
                scale, zero_point = self.scale[at], self.zero_point[at]
                codes = quantize(block, scale, zero_point, width, rounding=rounding)
                packed[rows] = pack(codes, width)


def _checked_bucket(x: Tensor, bucket: Tensor | None, num_buckets: int) -> Tensor:
    """Check features to pack, ``[N, F]``; return the degree bucket of each row, ``[N]`` uint8."""
    if x.dim() != 2 or x.dtype != torch.float32:
        raise ValueError(f"features: expected float32 [N, F], got {x.dtype} {list(x.shape)}")
    if bucket is None:
        bucket = torch.zeros(len(x), dtype=torch.uint8, device=x.device)
    if bucket.shape != (len(x),) or not 1 <= num_buckets <= 256:
        raise ValueError(
            f"degree bucket: expected [{len(x)}] and 1-256 widths, got "
            f"{list(bucket.shape)} and {num_buckets}"
        )
    if len(x) and not 0 <= int(bucket.min()) <= int(bucket.max()) < num_buckets:
        raise ValueError(
            f"degree bucket: expected 0 to {num_buckets - 1}, got "
            f"{int(bucket.min())} to {int(bucket.max())}"
        )
    return bucket.to(torch.uint8)


def _check_parts(x: PackedFeatures) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Check that all parts fit; return rows and first byte of each bucket."""
    check_widths(x.bit_widths)
    check_count(x.num_columns, "features, columns")
    check_flag(x.ranges_by_row, "ranges by row")
    num_nodes, num_buckets = len(x.bucket) if x.bucket.dim() else 0, len(x.bit_widths)
    check_count(num_nodes, "features, rows")
    check_tensor(x.bucket, "degree buckets", torch.uint8, {(num_nodes,)})
    check_buckets(x.bucket, num_buckets)
    devices = {str(part.device) for part in (x.data, x.bucket, x.scale, x.zero_point)}
    if len(devices) != 1:
        raise PackingError(f"packed features: expected one device, got {sorted(devices)}")
    tops = top_codes(x.bit_widths).to(x.scale.device)
    if x.ranges_by_row:
        shapes, tops = {(num_nodes, 1)}, tops[x.bucket.long()]
    else:
        shapes = {(num_buckets, 1), (num_buckets, x.num_columns)}
    check_ranges(x.scale, x.zero_point, "features", shapes, tops)
    counts = torch.bincount(x.bucket.long(), minlength=num_buckets).tolist()
    order = sorted(range(num_buckets), key=lambda b: (x.bit_widths[b] != FULL_PRECISION, b))
    sizes = [counts[b] * _row_bytes(x.num_columns, x.bit_widths[b]) for b in order]
    check_tensor(x.data, "packed rows", torch.uint8, {(sum(sizes),)})
    if not x.data.is_contiguous():
        raise PackingError("packed rows: expected bytes one after the other")
    starts = dict(zip(order, accumulate(sizes, initial=0), strict=False))
    return tuple(counts), tuple(starts[b] for b in range(num_buckets))


def _parts_of_file(fields: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[Any, ...]:
    """Return the arguments of :class:`PackedFeatures` that a file holds."""
    num_nodes, num_columns = shape = check_shape(fields["shape"], "shape of the features")
    widths = check_widths(fields["bit_widths"])
    data = tensors["data"]
    # Checked before anything of that size is made: each value takes a bit at least.
    num_values, most = (count * max(1, num_columns) for count in (num_nodes, MAX_COUNT))
    if num_values > min(8 * data.nbytes, most):
        raise PackingError(f"packed rows: expected {list(shape)}, got {data.nbytes} bytes")
    bucket = read_buckets(tensors["bucket"], num_nodes, len(widths))
    by_row = check_flag(fields["ranges_by_row"], "ranges by row")
    return data, bucket, widths, tensors["scale"], tensors["zero_point"], num_columns, by_row


def check_full_rows(features: PackedFeatures) -> None:
    """Look for NaN and infinity in rows that are float32, a block at a time.

    Raises:
        PackingError:
            If there are any.
    """
    for bucket, width in enumerate(features.bit_widths):
        if width == FULL_PRECISION:
            packed = features.packed_rows(bucket)
            for rows, _ in features.bucket_blocks(bucket):
                check_finite(packed[rows].view(torch.float32), "float32 rows")


def _reopen(made: type[PackedFeatures], path: str, checksum: int) -> PackedFeatures:
    """Map the file again that a pickle names, unless another one lies there now."""
    if read_checksum(path) != checksum:
        raise PackingError(f"{path}: expected the file that was pickled by name, got another")
    return made.open(path, verify=False)


def _row_bytes(num_columns: int, bit_width: int) -> int:
    """Return the bytes of one row, which is float32 at 32 bits."""
    return 4 * num_columns if bit_width == FULL_PRECISION else row_bytes(num_columns, bit_width)
