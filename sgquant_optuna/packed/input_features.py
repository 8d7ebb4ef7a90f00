"""Rows of the graph's own features in one of their stores, as a packed model holds them.

The bytes of each store are those of :func:`sgquant_optuna.quantization.input_stores.input_stores`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sgquant_optuna.exceptions import GraphError, PackingError
from sgquant_optuna.graph.sparse_products import csr
from sgquant_optuna.packed.blocks import BLOCK_ROWS, cut
from sgquant_optuna.packed.checks import (
    check_count,
    check_finite,
    check_ranges,
    check_shape,
    check_tensor,
    check_widths,
)
from sgquant_optuna.packed.gap_places import PLACES, GapPlaces, encode
from sgquant_optuna.packed.integers import pack_integers, read_integer_run, read_integers
from sgquant_optuna.quantization.affine import dequantize, fake_quantize, quantize
from sgquant_optuna.quantization.input_stores import MAX_VALUES
from sgquant_optuna.quantization.layout import bits_for, integers_nbytes, row_bytes
from sgquant_optuna.quantization.packing import pack, unpack
from sgquant_optuna.quantization.quantizer_config import Rounding
from sgquant_optuna.quantization.row_values import reciprocals, row_values
from sgquant_optuna.quantization.sites import FULL_PRECISION

ROW_VALUE_STORES = ("sparse 1/count", "sparse row codebook", "sparse row values")
CODE_STORES = ("rows", "sparse")
"""Stores that hold codes and their ranges, where a width quantizes."""
STORES = ("rows", "codebook", "sparse", "sparse codebook", *ROW_VALUE_STORES)
_MOST_BITS = 31  # of a count: it is at most the number of columns
_BLOCK_INTEGERS = 1 << 16
"""Integers that are unpacked at one time to check them."""


class InputPart:
    """Rows of one degree bucket; their bytes are read when the rows are.

    Args:
        store:
            One of :data:`STORES`.
        bit_width:
            Bits of a quantized value; 32 keeps the values.
        shape:
            Number of rows and columns, ``(R, F)``.
        tensors:
            Stored tensors: those of ``codes``, ``values``, ``scale``, ``zero_point``, and of
            :class:`.GapPlaces`, that the store has.
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
        if store not in STORES:
            raise PackingError(f"input part: expected a store of {STORES}, got {store!r}")
        expected = _names(store, bit_width)
        if set(tensors) != expected:
            raise PackingError(
                f"input part: expected {sorted(expected)} for {store}, got {sorted(tensors)}"
            )
        self.is_sparse, self.has_codebook = store.startswith("sparse"), "codebook" in store
        self.has_row_values = store in ROW_VALUE_STORES
        if self.is_sparse:
            self._places = GapPlaces(self.tensors, self.shape, count_bits)
        self._check_tensors()
        if self.has_codebook:
            self._check_codes()

    @classmethod
    def from_dense(
        cls,
        x: Tensor,
        store: str,
        bit_width: int,
        scale: Tensor,
        zero_point: Tensor,
        rounding: Rounding,
    ) -> InputPart:
        """Pack rows.

        Args:
            x:
                Rows, ``[R, F]`` float32.
            store:
                Name of the store.
            bit_width:
                Bits of a quantized value: 1-8, 16 or 32.
            scale:
                Step between codes, ``[1, 1]``, ``[1, F]`` or ``[R, 1]``; unused at 32 bits.
            zero_point:
                Real value of code 0, same shape.
            rounding:
                ``"nearest"`` or the paper's ``"floor"``.

        Raises:
            GraphError:
                If the store is one of rows of one value, and a row has another.
        """
        left = x
        if bit_width != FULL_PRECISION and store != "rows":
            left = fake_quantize(x, scale, zero_point, bit_width, rounding=rounding)
        tensors: dict[str, Tensor] = {}
        count_bits = 0
        if store.startswith("sparse"):
            counts = torch.count_nonzero(left, dim=1)
            count_bits = bits_for(int(counts.max()) if len(counts) else 0)
            tensors |= encode(left, count_bits)
        if store in ROW_VALUE_STORES:
            tensors |= _row_value_tensors(x, store)
        elif "codebook" in store:
            tensors |= _codebook(left, store)
        elif bit_width == FULL_PRECISION:
            tensors["values"] = x[left != 0] if store == "sparse" else x
        else:
            tensors |= {"scale": scale, "zero_point": zero_point}
            codes = quantize(x, scale, zero_point, bit_width, rounding=rounding)
            if store == "sparse":
                tensors["codes"] = pack_integers(codes[left != 0].long(), bit_width)
            else:
                tensors["codes"] = pack(codes, bit_width)
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        return cls(store, bit_width, (x.shape[0], x.shape[1]), tensors, count_bits)

    @property
    def nbytes(self) -> int:
        """Stored bytes, ranges and values of a codebook included."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return next(iter(self.tensors.values())).device

    def rows(self, index: Tensor) -> Tensor:
        """Bring some rows back, ``[n, F]`` float32.

        Args:
            index:
                Places in this part, ``[n]`` int64; may repeat.
        """
        if not self.is_sparse:
            return self._decode(self._stored_rows(index), index[:, None])
        crow = self._places.crow
        counts = crow[index + 1] - crow[index]
        row = torch.arange(len(index), device=index.device).repeat_interleave(counts)
        place = (
            torch.arange(len(row), device=index.device)
            + (crow[index] - counts.cumsum(0) + counts)[row]
        )
        column = self._places.columns(index)
        if self.has_row_values:
            values = self._row_values(index)[row]
        elif "codes" not in self.tensors:
            values = self.tensors["values"][place]
        else:
            codes = read_integers(self.tensors["codes"], self._num_codes, self._code_bits, place)
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
                Row after the last one.
            sparse:
                Whether to return a CSR matrix (of int32 indices) instead of a dense one.
        """
        index = torch.arange(start, stop, device=self.device)
        if not self.is_sparse:
            dense = self._decode(self._stored_rows(slice(start, stop)), index[:, None])
            return dense.to_sparse_csr() if sparse else dense
        low, high = (int(self._places.crow[row]) for row in (start, stop))
        crow = (self._places.crow[start : stop + 1] - low).int()
        column = self._places.columns(index).int()
        if self.has_row_values:
            values = self._row_values(index).repeat_interleave(crow.diff())
        elif "codes" not in self.tensors:
            values = self.tensors["values"][low:high]
        else:
            packed, bits = self.tensors["codes"], self._code_bits
            codes = read_integer_run(packed, self._num_codes, bits, low, high)
            by_row = "scale" in self.tensors and len(self.tensors["scale"]) > 1
            row = index.repeat_interleave(crow.diff()) if by_row else index
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

    def _row_values(self, index: Tensor) -> Tensor:
        """Return the one value that the non-zeros of each row have, ``[n]`` float32."""
        if "values" not in self.tensors:
            return reciprocals(self._places.crow[index + 1] - self._places.crow[index])
        if self.has_codebook:
            index = read_integers(self.tensors["codes"], self._num_codes, self._code_bits, index)
        return self.tensors["values"][index]

    def _decode(self, codes: Tensor, row: Tensor, column: Tensor | None = None) -> Tensor:
        """Bring codes back; ``column`` is given for those of single non-zeros."""
        if self.has_codebook:
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

    @property
    def _num_codes(self) -> int:
        """Number of codes of a sparse store: one for each row or non-zero."""
        return self.shape[0] if self.has_row_values else self._places.num_nonzeros

    @property
    def _code_bits(self) -> int:
        if not self.has_codebook:
            return self.bit_width
        return _codebook_bits(self.store, len(self.tensors["values"]))

    def _check_tensors(self) -> None:
        """Check types, shapes and ranges of all tensors."""
        (num_rows, num_columns), tensors = self.shape, self.tensors
        sizes: dict[str, tuple[int, ...]] = {}
        if self.has_codebook:
            num_values = tensors["values"].numel()
            sizes["values"] = (check_count(num_values, "values of a codebook", high=MAX_VALUES),)
        elif "values" in tensors:
            sizes["values"] = (self._num_codes,) if self.is_sparse else self.shape
        if "codes" in tensors and self.is_sparse:
            sizes["codes"] = (integers_nbytes(self._num_codes, self._code_bits),)
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

    def _check_codes(self) -> None:
        """Check that every code has a value in the codebook."""
        packed, bits, num_columns = self.tensors["codes"], self._code_bits, self.shape[1]
        blocks: Iterator[Tensor]
        if self.is_sparse:
            count = self._num_codes
            runs = cut(slice(0, count), _BLOCK_INTEGERS)
            blocks = (read_integer_run(packed, count, bits, r.start, r.stop) for r in runs)
        else:
            rows = packed.split(max(1, _BLOCK_INTEGERS // max(1, num_columns)))
            blocks = (unpack(block, num_columns, bits) for block in rows)
        num_values = len(self.tensors["values"])
        for codes in blocks:
            if codes.numel() and int(codes.max()) >= num_values:
                raise PackingError(
                    f"codes of the input: expected some below {num_values}, got {int(codes.max())}"
                )


def _codebook(x: Tensor, store: str) -> dict[str, Tensor]:
    """Return the values that ``x`` takes, and the code of each of its values or non-zeros."""
    if store.startswith("sparse"):
        values, place = x[x != 0].unique(return_inverse=True)
        codes = pack_integers(place, _codebook_bits(store, len(values)))
    else:
        values = x.unique()
        bits = _codebook_bits(store, len(values))
        # Places are 8 bytes each: a block of rows at a time.
        blocks = x.split(BLOCK_ROWS)
        codes = torch.cat([pack(torch.searchsorted(values, rows), bits) for rows in blocks])
    return {"codes": codes, "values": values}


def _row_value_tensors(x: Tensor, store: str) -> dict[str, Tensor]:
    """Return the values of rows of one value, as a store holds them."""
    found = row_values(x)
    if found is None or (store == "sparse 1/count" and found[0] == "own"):
        raise GraphError(
            f"features: expected rows of equal non-zeros for {store}, got others; give the graph "
            f"and the layout of one calibration"
        )
    if store == "sparse 1/count":
        return {}
    values = found[1]
    if store == "sparse row values":
        return {"values": values}
    distinct, place = values[values != 0].unique(return_inverse=True)
    codes = torch.zeros_like(values, dtype=torch.long)
    codes[values != 0] = place
    bits = _codebook_bits(store, len(distinct))
    return {"codes": pack_integers(codes, bits), "values": distinct}


def _codebook_bits(store: str, num_values: int) -> int:
    """Return the bits of a code; dense ones take at least one, others none if all are equal."""
    bits = bits_for(max(0, num_values - 1))
    return bits if store.startswith("sparse") else max(1, bits)


def _names(store: str, bit_width: int) -> set[str]:
    """Return the names of the tensors of a store."""
    names = set(PLACES) if store.startswith("sparse") else set()
    if store == "sparse 1/count":
        return names
    if store == "sparse row values":
        return names | {"values"}
    if "codebook" in store:
        return names | {"codes", "values"}
    if bit_width == FULL_PRECISION:
        return names | {"values"}
    return names | {"codes", "scale", "zero_point"}
