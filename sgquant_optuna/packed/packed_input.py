"""The graph's own features as a packed model holds them: each degree bucket in its own store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sgquant_optuna.exceptions import PackingError
from sgquant_optuna.packed.blocks import BLOCK_ROWS, cut
from sgquant_optuna.packed.indexing import places_in_buckets
from sgquant_optuna.packed.input_features import InputPart


class PackedInput:
    """Features ``[N, F]``: the rows of each degree bucket together, in node order.

    Args:
        parts:
            Rows of each bucket, ``None`` for one without nodes.
        bucket:
            Degree bucket of each node, ``[N]`` uint8, or ``None`` for one bucket.
        sparse:
            Whether products run on the non-zeros alone.

    Raises:
        PackingError:
            If the parts do not fit the buckets.
    """

    def __init__(
        self, parts: Sequence[InputPart | None], bucket: Tensor | None, *, sparse: bool
    ) -> None:
        present = [part for part in parts if part is not None]
        self.parts, self.bucket, self.sparse = tuple(parts), bucket, sparse
        columns = {part.shape[1] for part in present}
        if len(columns) != 1 or (bucket is None and len(parts) != 1):
            raise PackingError(
                f"packed input: got {len(parts)} parts of {sorted(columns)} columns"
            )
        self.shape = (sum(part.shape[0] for part in present), columns.pop())
        if bucket is None:
            return
        counts = torch.bincount(bucket.long(), minlength=len(parts)).tolist()
        if counts != [0 if part is None else part.shape[0] for part in parts]:
            raise PackingError("packed input: its parts do not fit the degree buckets")
        self._position = places_in_buckets(bucket, counts)

    @property
    def device(self) -> torch.device:
        """Device of the parts."""
        part = next(part for part in self.parts if part is not None)
        return part.device

    @property
    def nbytes(self) -> int:
        """Stored bytes without bucket ids."""
        return sum(part.nbytes for part in self.parts if part is not None)

    def blocks(self) -> Iterator[tuple[Tensor | slice, Tensor]]:
        """Bring all rows back block by block: their nodes, and a matrix, dense or CSR."""
        for number, part in enumerate(self.parts):
            if part is None:
                continue
            nodes = None if self.bucket is None else (self.bucket == number).nonzero()[:, 0]
            for rows in cut(slice(0, part.shape[0]), BLOCK_ROWS):
                of_block = rows if nodes is None else nodes[rows]
                yield of_block, part.matrix(rows.start, rows.stop, sparse=self.sparse)

    def rows(self, index: Tensor) -> Tensor:
        """Bring some rows back, ``[n, F]`` float32.

        Args:
            index:
                Nodes, ``[n]`` int64; may repeat.
        """
        if self.bucket is None:
            assert self.parts[0] is not None
            return self.parts[0].rows(index)
        out = torch.empty(len(index), self.shape[1], device=index.device)
        of_row = self.bucket[index]
        for number, part in enumerate(self.parts):
            where = (of_row == number).nonzero()[:, 0]
            if part is not None and len(where):
                out[where] = part.rows(self._position[index[where]].long())
        return out
