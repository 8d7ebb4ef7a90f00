"""The rows of one degree bucket of the graph's own features, in the store that was counted.

The bytes of each store are those of :func:`sgquant_optuna.quantization.input_stores.input_stores`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.graph.sparse_products import csr
from sgquant_optuna.packed.checks import (
    check_count,
    check_finite,
    check_ranges,
    check_shape,
    check_tensor,
    check_widths,
)
from sgquant_optuna.packed.input_checks import check_codes, check_places
from sgquant_optuna.packed.integers import read_integer_run, read_integers
from sgquant_optuna.quantization.affine import dequantize
from sgquant_optuna.quantization.input_stores import MAX_VALUES
from sgquant_optuna.quantization.layout import bits_for, integers_nbytes, row_bytes
from sgquant_optuna.quantization.packing import unpack
from sgquant_optuna.quantization.sites import FULL_PRECISION

_MOST_BITS = 31  # of a count: it is at most the number of columns
STORES = ("rows", "codebook", "sparse", "sparse codebook")


class InputPart:
    """Rows of one degree bucket; their bytes are read when the rows are.

    Args:
        store:
            ``"rows"``, ``"codebook"``, ``"sparse"`` or ``"sparse codebook"``.
        bit_width:
            Bits of a code of a range; 32 keeps the values.
        shape:
            Rows and columns, ``(R, F)``.
        tensors:
            What is stored: ``codes``, ``values``, ``counts``, ``columns``, ``scale`` and
            ``zero_point``, as far as the store has them.
        count_bits:
            Bits of the number of non-zeros of a row, in a sparse store.

    Raises:
        PackingError:
            If the tensors do not fit one another.
    """

    def __init__(
        self,
        store: str,
        bit_width: int,
        shape: tuple[int, int],
        tensors: Mapping[str, Tensor],
        count_bits: int = 0,
    ) -> None:
        check_widths((bit_width,), "bit width of the input")
        check_shape(shape, "shape of the input")
        check_count(count_bits, "bits of a count", high=_MOST_BITS)
        self.store, self.bit_width, self.shape = store, bit_width, shape
        self.tensors, self.count_bits = dict(tensors), count_bits
        if store not in STORES or set(tensors) != _names(store, bit_width):
            raise PackingError(f"input part: got {store!r} of {sorted(tensors)}")
        self.is_sparse = store.startswith("sparse")
        if self.is_sparse:  # the start of each row is derived, so it is not stored
            counts = read_integers(tensors["counts"], shape[0], count_bits)
            self._crow = F.pad(counts.cumsum(0), (1, 0))
            self._nnz = int(self._crow[-1])
        self._check()

    @property
    def nbytes(self) -> int:
        """Stored bytes, ranges and values of a codebook included."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.tensors.values())).device

    def fields(self) -> dict[str, Any]:
        """Return what the tensors do not say, ready for JSON."""
        return {
            "store": self.store,
            "bit_width": self.bit_width,
            "shape": list(self.shape),
            "count_bits": self.count_bits,
        }

    def rows(self, index: Tensor) -> Tensor:
        """Bring some rows back, ``[n, F]`` float32.

        Args:
            index:
                Places in this part, ``[n]`` int64; may repeat.
        """
        if not self.is_sparse:
            return self._decode(self._stored_rows(index), index[:, None])
        counts = self._crow[index + 1] - self._crow[index]
        row = torch.arange(len(index), device=index.device).repeat_interleave(counts)
        first = counts.cumsum(0) - counts
        place = torch.arange(len(row), device=index.device) - first[row]
        place += self._crow[index][row]
        column = read_integers(self.tensors["columns"], self._nnz, self._column_bits, place)
        if self.bit_width == FULL_PRECISION and self.store == "sparse":
            values = self.tensors["values"][place]
        else:
            codes = read_integers(self.tensors["codes"], self._nnz, self._code_bits, place)
            values = self._decode(codes, index[row], column)
        out = torch.zeros(len(index), self.shape[1], device=index.device)
        out[row, column] = values
        return out

    def matrix(self, start: int, stop: int, *, sparse: bool) -> Tensor:
        """Bring neighbouring rows back as one matrix, ``[stop - start, F]``.

        Args:
            start:
                First row.
            stop:
                One behind the last.
            sparse:
                Whether to return a CSR matrix (of int32 indices) instead of a dense one.
        """
        index = torch.arange(start, stop, device=self.device)
        if not self.is_sparse:
            dense = self._decode(self._stored_rows(slice(start, stop)), index[:, None])
            return dense.to_sparse_csr() if sparse else dense
        low, high = int(self._crow[start]), int(self._crow[stop])
        crow = (self._crow[start : stop + 1] - low).int()
        column = read_integer_run(self.tensors["columns"], self._nnz, self._column_bits, low, high)
        if self.bit_width == FULL_PRECISION and self.store == "sparse":
            values = self.tensors["values"][low:high]
        else:
            codes = read_integer_run(self.tensors["codes"], self._nnz, self._code_bits, low, high)
            by_value = "scale" in self.tensors and len(self.tensors["scale"]) > 1
            row = index.repeat_interleave(crow.diff()) if by_value else index
            values = self._decode(codes, row, column)
        shape = (stop - start, self.shape[1])
        if sparse:
            return csr(crow, column, values, shape)
        row = torch.arange(shape[0], device=self.device).repeat_interleave(crow.diff())
        out = torch.zeros(shape, device=self.device)
        out[row, column.long()] = values
        return out

    def _stored_rows(self, rows: Tensor | slice) -> Tensor:
        if "codes" not in self.tensors:
            return self.tensors["values"][rows]
        return unpack(self.tensors["codes"][rows], self.shape[1], self._code_bits)

    def _decode(self, codes: Tensor, row: Tensor, column: Tensor | None = None) -> Tensor:
        """Bring codes back; ``column`` is given for those of single non-zeros."""
        if "codebook" in self.store:
            return self.tensors["values"][codes.long()]
        if self.bit_width == FULL_PRECISION:
            return codes
        scale, zero_point = self.tensors["scale"], self.tensors["zero_point"]
        if len(scale) > 1:
            line = row.reshape(-1)
            shape = (-1, 1) if column is None else (-1,)
            scale, zero_point = scale[line].view(shape), zero_point[line].view(shape)
        elif column is not None:
            column = column.long() if scale.shape[1] > 1 else column.new_zeros(1).long()
            scale, zero_point = scale[0, column], zero_point[0, column]
        return dequantize(codes, scale, zero_point)

    def _check(self) -> None:
        num_rows, num_columns = self.shape
        tensors = self.tensors
        sizes: dict[str, tuple[int, ...]] = {}
        if "codebook" in self.store:
            num_values = check_count(
                tensors["values"].numel(), "values of a codebook", high=MAX_VALUES
            )
            sizes["values"] = (num_values,)
        elif "values" in tensors:
            sizes["values"] = (self._nnz,) if self.is_sparse else self.shape
        if self.is_sparse:
            sizes["columns"] = (integers_nbytes(self._nnz, self._column_bits),)
        if "codes" in tensors and self.is_sparse:
            sizes["codes"] = (integers_nbytes(self._nnz, self._code_bits),)
        elif "codes" in tensors:
            sizes["codes"] = (num_rows, row_bytes(num_columns, self._code_bits))
        for name, size in sizes.items():
            dtype = torch.float32 if name == "values" else torch.uint8
            check_tensor(tensors[name], f"{name} of the input", dtype, {size})
        if "values" in tensors:
            check_finite(tensors["values"], "values of the input")
        if "scale" in tensors:
            shapes = {(1, 1), (1, num_columns), (num_rows, 1)}
            ranges = tensors["scale"], tensors["zero_point"]
            check_ranges(*ranges, "the input", shapes, 2**self.bit_width - 1)
        if self.is_sparse:
            check_places(tensors["columns"], self._crow, num_columns)
        if "codebook" in self.store:
            places = self._nnz if self.is_sparse else None
            check_codes(tensors["codes"], num_values, self._code_bits, num_columns, places)

    @property
    def _column_bits(self) -> int:
        return bits_for(max(0, self.shape[1] - 1))

    @property
    def _code_bits(self) -> int:
        if self.store == "codebook":
            return codebook_bits(len(self.tensors["values"]))
        if self.store == "sparse codebook":
            return bits_for(max(0, len(self.tensors["values"]) - 1))
        return self.bit_width


def _names(store: str, bit_width: int) -> set[str]:
    names = {"counts", "columns"} if store.startswith("sparse") else set()
    if "codebook" in store:
        return names | {"codes", "values"}
    if bit_width == FULL_PRECISION:
        return names | {"values"}
    return names | {"codes", "scale", "zero_point"}


def codebook_bits(num_values: int) -> int:
    """Bits of a code into a list of that many values."""
    return max(1, bits_for(num_values - 1))
