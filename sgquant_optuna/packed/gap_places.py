"""Places of non-zeros as a packed model holds them, and how some rows of them are read.

Codes are in one stream of bits, the lowest of a byte first: as many ones as the high part of a gap
says, a zero, and its low bits; after :data:`.ESCAPE` ones, the gap as it is. A start is stored for
each 64 rows. Those of single rows are found when the places are opened and checked.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed.checks import check_tensor
from sgquant_optuna.packed.integers import pack_integers, read_integers
from sgquant_optuna.packed.kernels import has_kernels
from sgquant_optuna.quantization.gap_codes import (
    ESCAPE,
    GapCode,
    Gaps,
    blocks,
    column_order,
    raw_bits,
)
from sgquant_optuna.quantization.layout import (
    NUM_CLASSES,
    PARAMETER_BITS,
    ROWS_OF_START,
    bits_for,
)

PLACES = frozenset({"counts", "classes", "parameters", "starts", "gaps"})
_CLASS_BITS = bits_for(NUM_CLASSES - 1)
_WINDOW = 8  # bytes that hold a code wherever it begins
_WRONG = "places of the input: expected gaps that end where the next 64 rows begin, got others"


def encode(x: Tensor, count_bits: int) -> dict[str, Tensor]:
    """Pack the places of the non-zeros of some rows.

    Args:
        x:
            Rows, ``[R, F]``.
        count_bits:
            Bits of the number of non-zeros of a row.

    Returns:
        Tensors of :class:`GapPlaces`.
    """
    code = GapCode.of(x)
    stream = torch.zeros(-(-code.num_bits // 8), dtype=torch.uint8, device=x.device)
    by_row, written = [torch.zeros(0, dtype=torch.long, device=x.device)], 0
    for block in blocks(x):
        gaps = code.gaps(block)
        of_row = torch.zeros(len(block), dtype=torch.long, device=x.device)
        by_row.append(of_row.index_add_(0, gaps.row, gaps.length))
        written = _write(gaps, raw_bits(x.shape[1]), stream, written)
    lengths = torch.cat(by_row)
    starts = (lengths.cumsum(0) - lengths)[::ROWS_OF_START]
    return {
        "counts": pack_integers(torch.count_nonzero(x, dim=1), count_bits),
        "classes": pack_integers(code.classes.long(), _CLASS_BITS),
        "parameters": pack_integers(code.parameters, PARAMETER_BITS),
        "starts": pack_integers(starts, bits_for(8 * len(stream))),
        "gaps": stream,
    }


def _write(gaps: Gaps, raw: int, stream: Tensor, written: int) -> int:
    """Write codes behind those that are written; return how many bits are written then."""
    ones = gaps.gap >> gaps.parameter
    is_raw = ones >= ESCAPE
    low = torch.where(is_raw, gaps.gap, gaps.gap & ((1 << gaps.parameter) - 1))
    prefix = torch.where(is_raw, ESCAPE, ones + 1)
    pattern = ((1 << ones.clamp(max=ESCAPE)) - 1) | (low << prefix)
    skipped = written % 8
    place = gaps.length.cumsum(0) - gaps.length + skipped
    count = skipped + int(gaps.length.sum())
    bits = torch.zeros(-(-count // 8), 8, dtype=torch.uint8, device=stream.device)
    flat, length = bits.view(-1), gaps.length
    for at in range(int(length.max()) if len(length) else 0):
        left = length > at
        place, pattern, length = place[left], pattern[left], length[left]
        flat[place + at] = ((pattern >> at) & 1).to(torch.uint8)
    weights = 1 << torch.arange(8, device=stream.device)
    start = written // 8
    stream[start : start + len(bits)] |= (bits * weights).sum(dim=1).to(torch.uint8)
    return written - skipped + count


class GapPlaces:
    """Places of the non-zeros of some rows.

    Args:
        tensors:
            Counts of the rows, classes of the columns, parameters, starts and gaps.
        shape:
            Number of rows R and columns F.
        count_bits:
            Bits of the number of non-zeros of a row.

    Raises:
        PackingError:
            If the tensors do not fit one another, or a gap leads beyond the last column.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], shape: tuple[int, int], count_bits: int
    ) -> None:
        num_rows, num_columns = shape
        self.shape = shape
        counts = read_integers(tensors["counts"], num_rows, count_bits)
        self.crow = F.pad(counts.cumsum(0), (1, 0))
        self.num_nonzeros = int(self.crow[-1])
        gaps = tensors["gaps"]
        check_tensor(gaps, "gaps of the input", torch.uint8, {(gaps.numel(),)})
        parameters = read_integers(tensors["parameters"], NUM_CLASSES, PARAMETER_BITS)
        classes = read_integers(tensors["classes"], num_columns, _CLASS_BITS).to(torch.uint8)
        self._order = column_order(classes)
        # Of the class that a gap begins in; one more, for what is past the last column.
        self._parameter = F.pad(parameters[classes[self._order].long()], (0, 1))
        self._num_bits = 8 * len(gaps)
        self._stream = F.pad(gaps, (0, _WINDOW))
        self._start = self._starts_of_rows(tensors["starts"])

    def _starts_of_rows(self, packed: Tensor) -> Tensor:
        """Find the bit at which each row begins, ``[R]`` int64, and check all gaps."""
        num_rows = self.shape[0]
        num_blocks = -(-num_rows // ROWS_OF_START)
        stored = read_integers(packed, num_blocks, bits_for(self._num_bits))
        if num_blocks and int(stored.max()) > self._num_bits:
            raise PackingError(_WRONG)
        starts, ends = self._walk(stored)
        self._check_ends(stored, ends)
        return starts

    def _walk(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        """Read all gaps once: where each row begins, and where each 64 rows end."""
        num_rows, num_blocks = self.shape[0], len(stored)
        if has_kernels(stored.device):
            return self._walk_compiled(stored)
        first_row = torch.arange(num_blocks, device=stored.device) * ROWS_OF_START
        sizes = self.crow[(first_row + ROWS_OF_START).clamp(max=num_rows)] - self.crow[first_row]
        by_size = sizes.argsort(descending=True, stable=True)
        starts = torch.zeros(num_rows, dtype=torch.long, device=stored.device)
        row_of = torch.repeat_interleave(
            torch.arange(num_rows, device=stored.device), self.crow.diff()
        )
        position, before = stored[by_size].clone(), torch.full_like(by_size, -1)
        first = self.crow[first_row][by_size]
        active = sizes[by_size]
        for step in range(int(sizes.max()) if num_blocks else 0):
            live = int((active > step).sum())
            at = first[:live] + step
            row = row_of[at]
            is_first = self.crow[row] == at
            starts[row[is_first]] = position[:live][is_first]
            last = torch.where(is_first, -1, before[:live])
            rank, nbits = self._next(position[:live], last)
            before[:live] = rank
            position[:live] += nbits
        ends = torch.empty_like(position)
        ends[by_size] = position
        return starts, ends

    def _walk_compiled(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        from sgquant_optuna.packed.numba_gaps import starts_of_rows

        starts = torch.zeros(self.shape[0], dtype=torch.long)
        ends, largest = starts_of_rows(
            self._stream.numpy(),
            stored.numpy(),
            self.crow.diff().numpy(),
            self.shape[1],
            self._parameter.numpy(),
            ESCAPE,
            raw_bits(self.shape[1]),
            ROWS_OF_START,
            starts.numpy(),
        )
        self._check_place(largest)
        return starts, torch.from_numpy(ends)

    def _check_place(self, place: int) -> None:
        if place >= self.shape[1]:
            raise PackingError(
                f"places of the input: expected columns below {self.shape[1]}, got {place}"
            )

    def _check_ends(self, stored: Tensor, ends: Tensor) -> None:
        """Check that each 64 rows end where the next begin, and the last in the last byte."""
        last = int(ends[-1]) if len(ends) else 0
        fits = (not len(stored) or int(stored[0]) == 0) and bool((ends[:-1] == stored[1:]).all())
        if not fits or -(-last // 8) * 8 != self._num_bits:
            raise PackingError(_WRONG)
        if last % 8 and int(self._stream[last // 8]) >> (last % 8):
            raise PackingError("places of the input: expected zeros after the last gap")

    def _next(self, position: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Read one code at each of some bits: the place that it leads to, and its bits."""
        byte = (position >> 3).clamp(max=len(self._stream) - _WINDOW)
        window = self._stream[byte[:, None] + torch.arange(_WINDOW, device=byte.device)]
        word = window.view(torch.int64)[:, 0] >> (position & 7)
        flipped = ~word & ((1 << 56) - 1)
        lowest = flipped & -flipped
        ones = lowest.clamp(min=1).double().log2().long()
        is_raw = (ones >= ESCAPE) | (lowest == 0)
        parameter = self._parameter[before + 1]
        raw = raw_bits(self.shape[1])
        low = (word >> (ones + 1)) & ((1 << parameter) - 1)
        whole = (word >> ESCAPE) & ((1 << raw) - 1)
        gap = torch.where(is_raw, whole, (ones << parameter) | low)
        rank = before + 1 + gap
        self._check_place(int(rank.max()) if len(rank) else 0)
        return rank, torch.where(is_raw, ESCAPE + raw, ones + 1 + parameter)

    def columns(self, index: Tensor) -> Tensor:
        """Return the columns of the non-zeros of some rows, rising within each, ``[n]`` int64.

        Args:
            index:
                Rows, ``[m]`` int64; may repeat.
        """
        counts = self.crow[index + 1] - self.crow[index]
        if has_kernels(index.device):
            return self._columns_compiled(index, counts)
        first = counts.cumsum(0) - counts
        by_size = counts.argsort(descending=True, stable=True)
        live = counts[by_size]
        ranks = torch.empty(int(counts.sum()), dtype=torch.long, device=index.device)
        position, before = self._start[index][by_size], torch.full_like(by_size, -1)
        first = first[by_size]
        for step in range(int(live[0]) if len(live) else 0):
            count = int((live > step).sum())
            rank, nbits = self._next(position[:count], before[:count])
            ranks[first[:count] + step] = rank
            before[:count] = rank
            position[:count] += nbits
        row = torch.arange(len(index), device=index.device).repeat_interleave(counts)
        key = (row * self.shape[1] + self._order[ranks]).sort().values
        return key - row * self.shape[1]

    def _columns_compiled(self, index: Tensor, counts: Tensor) -> Tensor:
        from sgquant_optuna.packed.numba_gaps import columns_of_rows

        columns = torch.empty(int(counts.sum()), dtype=torch.long)
        columns_of_rows(
            self._stream.numpy(),
            self._start[index].numpy(),
            counts.numpy(),
            self._order.numpy(),
            self._parameter.numpy(),
            ESCAPE,
            raw_bits(self.shape[1]),
            columns.numpy(),
        )
        return columns
