"""Stores that lose nothing, for inputs that are binary, take few values, or are mostly zero."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed.bit_array import pack_integers, read_integers
from sgquant_optuna.quantization.layout import bits_for, integers_nbytes, packed_nbytes
from sgquant_optuna.quantization.packing import pack, unpack

MAX_VALUES = 256
"""A codebook holds at most that many values: above 8 bits float32 is near."""


@dataclass(frozen=True, eq=False)
class CodebookFeatures:
    """Features of few values: a code for each, and the values themselves.

    Args:
        codes:
            Packed codes, ``[N, bytes of a row]`` uint8.
        values:
            Value of each code, ``[K]`` float32.
        shape:
            ``(N, F)``.
    """

    codes: Tensor
    values: Tensor
    shape: tuple[int, int]

    @classmethod
    def from_dense(cls, x: Tensor) -> CodebookFeatures:
        """Store ``x``, ``[N, F]``.

        Raises:
            PackingError:
                If it takes more than 256 values, or NaN.
        """
        values = torch.unique(x)
        if len(values) > MAX_VALUES or bool(torch.isnan(values).any()):
            raise PackingError(
                f"codebook: expected at most {MAX_VALUES} values and no NaN, got {len(values)}"
            )
        bits = _code_bits(len(values))
        # One block of rows at a time: the positions of all values would be 8 bytes each.
        blocks = [pack(torch.searchsorted(values, rows), bits) for rows in x.split(1024)]
        return cls(torch.cat(blocks), values, (x.shape[0], x.shape[1]))

    @property
    def stored_nbytes(self) -> int:
        """Bytes of codes and values."""
        return self.codes.nbytes + self.values.nbytes

    def rows(self, index: Tensor) -> Tensor:
        """Bring some rows back, ``[R, F]`` float32."""
        codes = unpack(self.codes[index], self.shape[1], _code_bits(len(self.values)))
        return self.values[codes.long()]


@dataclass(frozen=True, eq=False)
class SparseStore:
    """The non-zeros of features: count of each row, column and value of each non-zero.

    A column takes only the bits that F needs (11 for Cora). A value is a code into a codebook
    (exact; 0 bits where all non-zeros are equal), a code of a range, or float32.

    Args:
        counts:
            Packed number of non-zeros of each row.
        columns:
            Packed column of each non-zero.
        codes:
            Packed codes of the values, or float32 values, ``[nnz]``, where ``code_bits`` is 32.
        values:
            Value of each code, ``[2**code_bits]`` at most; empty where ``code_bits`` is 32.
        shape:
            ``(N, F)``.
        nnz:
            Number of non-zeros.
        count_bits:
            Bits of a count.
        code_bits:
            Bits of a code, 0-8 or 16, or 32.
    """

    counts: Tensor
    columns: Tensor
    codes: Tensor
    values: Tensor
    shape: tuple[int, int]
    nnz: int
    count_bits: int
    code_bits: int
    _crow: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Derive the start of each row."""
        counts = read_integers(self.counts, self.shape[0], self.count_bits)
        crow = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        if int(crow[-1]) != self.nnz:
            raise PackingError(f"sparse rows: expected {self.nnz} values, got {int(crow[-1])}")
        object.__setattr__(self, "_crow", crow)

    @classmethod
    def from_dense(cls, x: Tensor) -> SparseStore:
        """Store the non-zeros of ``x``, ``[N, F]``, exactly.

        Raises:
            PackingError:
                If ``x`` holds NaN.
        """
        non_zeros = x[x != 0]
        if bool(torch.isnan(non_zeros).any()):
            raise PackingError("sparse features: expected numbers, got NaN")
        values = torch.unique(non_zeros)
        if len(values) > MAX_VALUES:
            return cls._make(x, non_zeros, values[:0], 32)
        return cls._make(
            x, torch.searchsorted(values, non_zeros), values, bits_for(max(0, len(values) - 1))
        )

    @classmethod
    def quantized(cls, x: Tensor, codes: Tensor, values: Tensor, bit_width: int) -> SparseStore:
        """Store the non-zeros of ``x`` as codes of ``bit_width`` bits.

        Args:
            x:
                Features, ``[N, F]``; only where they are not zero matters.
            codes:
                Code of each non-zero in the order of the rows, ``[nnz]``.
            values:
                Real value of each code, ``[2**bit_width]``.
            bit_width:
                Bits, 1-8 or 16.
        """
        return cls._make(x, codes.long(), values, bit_width)

    @classmethod
    def _make(cls, x: Tensor, codes: Tensor, values: Tensor, code_bits: int) -> SparseStore:
        counts = torch.count_nonzero(x, dim=1)
        count_bits = bits_for(int(counts.max()) if len(counts) else 0)
        columns = x.nonzero()[:, 1]
        return cls(
            pack_integers(counts, count_bits),
            pack_integers(columns, bits_for(max(0, x.shape[1] - 1))),
            codes if code_bits == 32 else pack_integers(codes, code_bits),
            values,
            (x.shape[0], x.shape[1]),
            len(columns),
            count_bits,
            code_bits,
        )

    @property
    def stored_nbytes(self) -> int:
        """Bytes of counts, columns, codes and values."""
        return sum(p.nbytes for p in (self.counts, self.columns, self.codes, self.values))

    def rows(self, index: Tensor) -> Tensor:
        """Bring some rows back, ``[R, F]`` float32."""
        counts = self._crow[index + 1] - self._crow[index]
        row = torch.arange(len(index)).repeat_interleave(counts)
        first = counts.cumsum(0) - counts
        place = torch.arange(len(row)) - first[row] + self._crow[index][row]
        bits = bits_for(max(0, self.shape[1] - 1))
        out = torch.zeros(len(index), self.shape[1])
        if self.code_bits == 32:
            value = self.codes[place]
        else:
            value = self.values[read_integers(self.codes, self.nnz, self.code_bits, place)]
        out[row, read_integers(self.columns, self.nnz, bits, place)] = value
        return out


def exact_nbytes(x: Tensor) -> dict[str, int]:
    """Bytes of ``x``, ``[N, F]``, in each store that loses nothing, by the formula alone."""
    num_rows, num_columns = x.shape
    nnz = int(torch.count_nonzero(x))
    most = int(torch.count_nonzero(x, dim=1).max()) if x.numel() else 0
    values = torch.unique(x)
    index = integers_nbytes(num_rows, bits_for(most)) + integers_nbytes(
        nnz, bits_for(max(0, num_columns - 1))
    )
    others = len(values) - int((values == 0).any())
    sizes = {"dense": 4 * x.numel(), "sparse": index + 4 * nnz}
    if others <= MAX_VALUES:
        coded = integers_nbytes(nnz, bits_for(max(0, others - 1)))
        sizes["sparse"] = index + coded + 4 * others
    if len(values) <= MAX_VALUES:
        bits = _code_bits(len(values))
        sizes["codebook"] = packed_nbytes(num_rows, num_columns, bits) + 4 * len(values)
    return sizes


def cheapest_store(x: Tensor) -> CodebookFeatures | SparseStore | None:
    """Store ``x``, ``[N, F]``, exactly in the fewest bytes; ``None`` if float32 is smallest."""
    sizes = exact_nbytes(x)
    name = min(sizes, key=lambda store: sizes[store])
    if name == "dense":
        return None
    return CodebookFeatures.from_dense(x) if name == "codebook" else SparseStore.from_dense(x)


def _code_bits(num_values: int) -> int:
    return max(1, bits_for(num_values - 1))
