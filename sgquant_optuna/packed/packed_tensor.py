"""Packed features that a layer takes for an ordinary tensor, so that models stay as they are.

``linear`` and products with a sparse matrix run block by block, in the order of operations of the
fake-quantized model: a sum that differs in its last bit could move a hidden feature across the
border of two codes. Anything else unpacks all rows first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from sgquant_optuna.bit_widths import FULL_PRECISION
from sgquant_optuna.packed.absent_input import METADATA
from sgquant_optuna.packed.adjacency import add_rows, parts_of, row_blocks
from sgquant_optuna.packed.features import PackedFeatures
from sgquant_optuna.quantization.affine import dequantize
from sgquant_optuna.quantization.packing import unpack
from sgquant_optuna.sparse_products import csr

BLOCK_VALUES = 1 << 20
"""Float32 values of neighbours that exist at one time: 4 MiB."""


class Rows(Protocol):
    """What holds packed rows."""

    shape: tuple[int, int]

    def blocks(self) -> Iterator[tuple[Tensor | slice, Tensor]]:
        """Bring all rows back block by block: their nodes, and a matrix, dense or CSR."""

    def rows(self, index: Tensor) -> Tensor:
        """Bring some rows back, ``[n, F]`` float32."""


class HiddenRows:
    """Features that a layer computed, packed.

    Args:
        features:
            The packed features.
    """

    def __init__(self, features: PackedFeatures) -> None:
        self.features = features
        self.shape = features.shape

    def blocks(self) -> Iterator[tuple[Tensor | slice, Tensor]]:
        """Bring all rows back block by block: their nodes, and a dense matrix."""
        x = self.features
        for number, width in enumerate(x.bit_widths):
            packed = x.packed_rows(number)
            for rows, nodes in x.blocks(number):
                if width == FULL_PRECISION:
                    yield nodes, packed[rows].view(torch.float32)
                    continue
                line = nodes if x.ranges_by_row else number
                codes = unpack(packed[rows], x.num_columns, width)
                yield nodes, dequantize(codes, x.scale[line], x.zero_point[line])

    def rows(self, index: Tensor) -> Tensor:
        """Bring some rows back, ``[n, F]`` float32."""
        return self.features.rows(index)


class PackedTensor(Tensor):
    """Packed features ``[N, F]`` as an argument of a layer, or as the ``x`` of a ``Data``.

    Selecting rows unpacks those rows alone, so ``Data.subgraph`` and the loaders built on it never
    make the whole matrix.
    """

    packed: Rows

    @staticmethod
    def __new__(cls, packed: Rows) -> PackedTensor:
        """Wrap what holds the rows."""
        self = Tensor._make_wrapper_subclass(cls, packed.shape, dtype=torch.float32)
        assert isinstance(self, PackedTensor)
        self.packed = packed
        return self

    def __repr__(self) -> str:  # type: ignore[override]
        """Return the shape."""
        return f"PackedTensor(shape={self.packed.shape})"

    def dense(self) -> Tensor:
        """Return the features as an ordinary tensor, ``[N, F]``."""
        out = torch.empty(self.packed.shape)
        for nodes, block in self.packed.blocks():
            out[nodes] = block.to_dense()
        return out

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Work block by block where that is possible, else on the dense matrix."""
        kwargs = kwargs or {}
        if func is F.linear and isinstance(args[0], PackedTensor):
            return _linear(*args, **kwargs)
        if func in _MATMUL and args[0].layout == torch.sparse_csr:
            return _sparse_product(*args)
        if func is F.dropout and not kwargs.get("training", args[2] if len(args) > 2 else True):
            return args[0]
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        index = _row_index(func, args, kwargs)
        if index is not None:  # a loader that samples nodes unpacks these alone
            return args[0].packed.rows(index)
        return func(*tree_map(_dense, args), **tree_map(_dense, kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Make dense for operations that come from below Python."""
        return func(*tree_map(_dense, args), **tree_map(_dense, kwargs or {}))


_MATMUL = {torch.matmul, torch.mm, torch.sparse.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__}


def rows_of(x: Tensor, index: Tensor) -> Tensor:
    """Return some rows of packed or ordinary features, ``[n, F]`` float32."""
    return x.packed.rows(index) if isinstance(x, PackedTensor) else x[index]


def blocks_of(x: Tensor) -> Iterator[tuple[Tensor | slice, Tensor]]:
    """Bring features back block by block: their nodes, and a matrix, dense or CSR."""
    return x.packed.blocks() if isinstance(x, PackedTensor) else iter([(slice(None), x)])


def _dense(value: object) -> object:
    return value.dense() if isinstance(value, PackedTensor) else value


def _row_index(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | None:
    """Return the rows that a call selects, ``[n]`` int64, or ``None`` if it does otherwise."""
    if func in (torch.index_select, Tensor.index_select):
        dim, index = (*args[1:], *kwargs.values()) if len(args) > 1 else (None, None)
        return index if dim == 0 and isinstance(index, Tensor) else None
    if func is not Tensor.__getitem__ or not isinstance(args[0], PackedTensor):
        return None
    index = args[1]
    if isinstance(index, slice):
        return torch.arange(args[0].packed.shape[0])[index]
    if not isinstance(index, Tensor) or index.dim() != 1:
        return None
    return index.nonzero()[:, 0] if index.dtype == torch.bool else index.long()


def _linear(input: PackedTensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = torch.empty(input.packed.shape[0], weight.shape[0])
    for nodes, block in input.packed.blocks():
        if block.layout == torch.sparse_csr:
            product = block @ weight.t()
            out[nodes] = product if bias is None else product.add_(bias)
        else:
            out[nodes] = F.linear(block, weight, bias)
    return out


def _sparse_product(matrix: Tensor, x: PackedTensor) -> Tensor:
    """Multiply ``[R, N] @ [N, F]``: a few rows at a time, with only their neighbours unpacked."""
    crow, col, value = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    num_columns = x.packed.shape[1]
    out = torch.empty(matrix.shape[0], num_columns)
    limit = max(1, BLOCK_VALUES // max(1, num_columns))
    for rows, entries in row_blocks(crow, limit):
        if entries.stop - entries.start > limit:
            _add_hub(out[rows], col, value, parts_of(entries, limit), x)
            continue
        nodes, place = col[entries].long().unique(return_inverse=True)
        shape = (rows.stop - rows.start, len(nodes))
        local = crow[rows.start : rows.stop + 1] - entries.start
        part = csr(local, place.to(crow.dtype), value[entries], shape)
        out[rows] = part @ x.packed.rows(nodes) if len(nodes) else 0
    return out


def _add_hub(
    out: Tensor, col: Tensor, value: Tensor, parts: Iterable[slice], x: PackedTensor
) -> None:
    """Add up one row with more neighbours than a block holds."""
    out.zero_()
    for part in parts:
        neighbours = x.packed.rows(col[part].long()).mul_(value[part, None])
        add_rows(out, neighbours.new_zeros(len(neighbours), dtype=torch.long), neighbours)
