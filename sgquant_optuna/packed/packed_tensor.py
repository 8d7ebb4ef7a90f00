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

from sgquant_optuna.graph.sparse_products import csr
from sgquant_optuna.graph.tensor_base import WrapperTensor
from sgquant_optuna.packed.adjacency import add_rows
from sgquant_optuna.packed.blocks import BLOCK_VALUES, cut, row_blocks
from sgquant_optuna.packed.indexing import split_index
from sgquant_optuna.packed.packed_features import PackedFeatures


class Rows(Protocol):
    """Anything that holds rows packed."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""

    @property
    def device(self) -> torch.device:
        """Device of the packed rows."""

    def blocks(self) -> Iterator[tuple[Tensor | slice, Tensor]]:
        """Bring all rows back block by block: their nodes, and a matrix, dense or CSR."""

    def rows(self, index: Tensor) -> Tensor:
        """Bring some rows back, ``[n, F]`` float32."""


class PackedTensor(WrapperTensor):
    """Packed features ``[N, F]`` as an argument of a layer, or as the ``x`` of a ``Data``.

    Selecting rows unpacks those rows alone, so ``Data.subgraph`` and the loaders built on it never
    make the whole matrix. Copies and moves stay packed, and copies share the bytes, which nothing
    writes to. Features of a mapped file pickle by its path.

    Args:
        packed:
            Packed features, or anything else that holds rows.

    Raises:
        TypeError:
            If an operation would change them in place.
    """

    packed: Rows

    @staticmethod
    def __new__(cls, packed: Rows) -> PackedTensor:
        """Wrap packed rows."""
        self = cls._wrap(packed.shape, device=packed.device)
        self.packed = packed
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[type[PackedTensor], tuple[Rows]]:
        """Pickle the packed rows."""
        return PackedTensor, (self.packed,)

    def dense(self) -> Tensor:
        """Return the features as an ordinary tensor, ``[N, F]``."""
        out = torch.empty(self.packed.shape, device=self.packed.device)
        for nodes, block in self.packed.blocks():
            out[nodes] = block.to_dense()
        return out

    @classmethod
    def _compute(
        cls, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Work block by block, or on the selected rows alone."""
        if func is F.linear and isinstance(args[0], PackedTensor):
            return _linear(*args, **kwargs)
        plain = len(args) == 2 and not kwargs  # torch.sparse.mm may reduce otherwise
        if func in _MATMUL and plain and args[0].layout == torch.sparse_csr:
            return _sparse_product(*args)
        if args and isinstance(args[0], PackedTensor):
            return _packed_result(func, *args, **kwargs)
        return NotImplemented


_MATMUL = {torch.matmul, torch.mm, torch.sparse.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__}
_COPIES = {Tensor.clone, torch.clone, Tensor.detach, torch.detach, Tensor.contiguous}
_MOVES = {Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.float}


def _packed_result(func: Callable[..., Any], x: PackedTensor, *args: Any, **kwargs: Any) -> Any:
    """Return what a call gives without unpacking all of ``x``; ``NotImplemented`` if it must."""
    name = getattr(func, "__name__", "")
    if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
        raise TypeError(
            f"packed features: expected an operation that does not change them, got {name}; "
            f"change dense() and pack it"
        )
    if func is F.dropout and not kwargs.get("training", args[1] if len(args) > 1 else True):
        return x
    if func in _COPIES:
        return PackedTensor(x.packed)
    if func in _MOVES:
        return _moved(func, x, *args, **kwargs)
    if func is Tensor.__getitem__:
        return _selected(x, args[0])
    if name == "index_select":  # PyG puts a function of its own over torch's
        given = dict(zip(("dim", "index"), args, strict=False)) | kwargs
        if given.keys() == {"dim", "index"} and given["dim"] in (0, -2):
            return _selected(x, given["index"])
    return NotImplemented


def _moved(func: Callable[..., Any], x: PackedTensor, *args: Any, **kwargs: Any) -> Any:
    others = [arg.new_empty(0) if isinstance(arg, PackedTensor) else arg for arg in args]
    to = func(torch.empty(0, device=x.packed.device), *others, **kwargs)
    if to.dtype != torch.float32:
        return NotImplemented
    if to.device == x.packed.device:
        return x
    if not isinstance(x.packed, PackedFeatures):
        return NotImplemented
    return PackedTensor(x.packed.to(to.device))


def _selected(x: PackedTensor, index: object) -> Any:
    found = split_index(index, x.packed.shape[0])
    if found is None:
        return NotImplemented
    rows, rest = found
    unpacked = x.packed.rows(rows)
    return unpacked if rest is None else unpacked[rest]


def _linear(input: PackedTensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = weight.new_empty(input.packed.shape[0], weight.shape[0])
    for nodes, block in input.packed.blocks():
        if block.layout == torch.sparse_csr:
            product = block @ weight.t()
            out[nodes] = product if bias is None else product.add_(bias)
        else:
            out[nodes] = F.linear(block, weight, bias)
    return out


def _sparse_product(matrix: Tensor, x: PackedTensor) -> Tensor:
    """Multiply ``[R, N] @ [N, F]``, a few rows at a time: only their neighbours are unpacked."""
    crow, col, value = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    num_columns = x.packed.shape[1]
    out = value.new_empty(matrix.shape[0], num_columns)
    limit = max(1, BLOCK_VALUES // max(1, num_columns))
    for rows, entries in row_blocks(crow, limit):
        if entries.stop - entries.start > limit:
            _add_hub(out[rows], col, value, cut(entries, limit), x)
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
