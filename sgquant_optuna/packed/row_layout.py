"""Where the row of each node lies in a file of packed rows: arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed.checks import check_count, check_flag, check_shape, check_widths
from sgquant_optuna.quantization.layout import row_bytes
from sgquant_optuna.quantization.sites import FULL_PRECISION

_ALIGNMENT = 64  # bytes: a line of the cache, and more than a float32 needs


@dataclass(frozen=True)
class RowLayout:
    """Places of rows: buckets from the highest degree to the lowest, so that hot rows lie first.

    Args:
        shape:
            Number of nodes N and of features F.
        bit_widths:
            Bit width of each of B buckets: 1-8, 16 or 32.
        bucket_rows:
            Number of rows of each bucket.
        by_degree:
            Whether rows lie in falling order of degree, so that the place of each node has to be
            stored; else in the order of the nodes.

    Raises:
        PackingError:
            If the parts do not fit one another.
    """

    shape: tuple[int, int]
    bit_widths: tuple[int, ...]
    bucket_rows: tuple[int, ...]
    by_degree: bool

    def __post_init__(self) -> None:
        """Check the parts: a crafted file may hold any."""
        check_shape(self.shape, "shape of the features")
        check_widths(self.bit_widths)
        check_flag(self.by_degree, "order by degree")
        for count in self.bucket_rows:
            check_count(count, "rows of a bucket")
        if len(self.bucket_rows) != len(self.bit_widths) or sum(self.bucket_rows) != self.shape[0]:
            raise PackingError(
                f"rows of {len(self.bit_widths)} buckets: expected {self.shape[0]} together, got "
                f"{list(self.bucket_rows)!s:.200}"
            )

    def fields(self) -> dict[str, Any]:
        """Return the header of a file with this layout, for JSON."""
        return {
            "shape": list(self.shape),
            "bit_widths": list(self.bit_widths),
            "bucket_rows": list(self.bucket_rows),
            "by_degree": self.by_degree,
        }

    @classmethod
    def of_fields(cls, fields: dict[str, Any]) -> RowLayout:
        """Read what :meth:`fields` wrote."""
        shape = check_shape(fields["shape"], "shape of the features")
        rows = fields["bucket_rows"]
        return cls(shape, check_widths(fields["bit_widths"]), tuple(rows), fields["by_degree"])

    @cached_property
    def row_nbytes(self) -> tuple[int, ...]:
        """Bytes of a row of each bucket."""
        columns = self.shape[1]
        return tuple(
            4 * columns if width == FULL_PRECISION else row_bytes(columns, width)
            for width in self.bit_widths
        )

    @cached_property
    def first_places(self) -> tuple[int, ...]:
        """Place of the first row of each bucket; the highest bucket begins at 0."""
        return tuple(accumulate(self.bucket_rows[::-1], initial=0))[-2::-1]

    @cached_property
    def first_bytes(self) -> tuple[int, ...]:
        """First byte of each bucket among the rows."""
        return self._ends[-2::-1]

    @property
    def data_nbytes(self) -> int:
        """Bytes of all rows, with those that fill up each bucket to whole lines of the cache."""
        return self._ends[-1]

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        sizes = (n * size for n, size in zip(self.bucket_rows, self.row_nbytes, strict=True))
        padded = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
        return tuple(accumulate(padded[::-1], initial=0))

    def buckets_of(self, places: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Return the bucket of each place, ``[n]``."""
        last = len(self.bit_widths) - 1
        starts = np.array(self.first_places[::-1])
        # Of empty buckets, which begin where another does, the last one has the rows.
        return (last - (np.searchsorted(starts, places, side="right") - 1)).astype(np.uint8)
