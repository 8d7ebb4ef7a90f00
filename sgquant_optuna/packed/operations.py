"""Products with packed features, ``linear`` and ``aggregate``, in a bounded float32 workspace."""

from __future__ import annotations

import torch
from torch import Tensor

from sgquant_optuna.graph.sparse_products import csr
from sgquant_optuna.packed import kernels
from sgquant_optuna.packed.blocks import BLOCK_VALUES, row_blocks
from sgquant_optuna.packed.packed_features import PackedFeatures
from sgquant_optuna.quantization.packing import unpack
from sgquant_optuna.quantization.sites import FULL_PRECISION

NARROW_COLUMNS = 128
"""Below this, unpacking and MKL's product are faster than the kernel."""
WORKSPACE_VALUES = 1 << 22
"""Largest number of float32 values beside the output: 16 MiB."""
BLOCK_EDGES = 1 << 20
"""Edges of a block: a product makes 32-bit copies of their indices."""
COMPILED_THREADS = 2
"""Largest number of threads at which the kernel, on one of them, unpacks faster than torch."""


def linear(
    x: PackedFeatures, weight: Tensor, bias: Tensor | None = None, *, fast: bool | None = None
) -> Tensor:
    """Multiply packed features by a matrix, one block of rows at a time.

    Args:
        x:
            Packed features ``[N, F]``.
        weight:
            Matrix, ``[H, F]``, as in ``torch.nn.functional.linear``.
        bias:
            Constant of each output, ``[H]``.
        fast:
            Whether to unpack by the compiled kernel; by default where it is faster: installed, on
            the CPU and at most :data:`COMPILED_THREADS` threads.

    Returns:
        Products, ``[N, H]`` float32.

    Raises:
        ValueError:
            If the weight does not have F columns.
    """
    if weight.dim() != 2 or weight.shape[1] != x.num_columns:
        raise ValueError(f"weight: expected [H, {x.num_columns}], got {list(weight.shape)}")
    if fast is None:
        fast = kernels.has_kernels(x.device) and torch.get_num_threads() <= COMPILED_THREADS
    out = x.scale.new_empty(x.shape[0], weight.shape[0])
    block_rows = max(1, min(BLOCK_VALUES // max(1, x.num_columns), x.shape[0]))
    # Buffers serve all blocks: the kernel of the system would zero fresh ones each time. Codes of
    # the last byte may reach beyond the last column.
    codes = x.scale.new_empty(block_rows, x.num_columns + 8)
    result = x.scale.new_empty(block_rows, weight.shape[0])
    sums = weight.sum(dim=1)
    for b, width in enumerate(x.bit_widths):
        packed = x.packed_rows(b)
        scaled, constant = weight, sums.new_zeros(())
        if width != FULL_PRECISION and not x.ranges_by_row:
            # (scale * codes + zero_point) @ W.T = codes @ (scale * W).T + zero_point @ W.T
            scaled = weight * x.scale[b]
            constant = (x.zero_point[b] * weight).sum(dim=1)
        for rows, nodes in x.bucket_blocks(b, block_rows):
            block = codes[: len(nodes), : x.num_columns]
            if width == FULL_PRECISION:
                block = packed[rows].view(torch.float32)
            elif fast:
                kernels.unpack_rows(packed[rows], x.num_columns, width, codes)
            else:
                block.copy_(unpack(packed[rows], x.num_columns, width))
            product = torch.addmm(constant, block, scaled.t(), out=result[: len(nodes)])
            if x.ranges_by_row and width != FULL_PRECISION:
                product.mul_(x.scale[nodes]).addcmul_(x.zero_point[nodes], sums)
            out.index_copy_(0, nodes, product)
    return out if bias is None else out.add_(bias)


def aggregate(
    crow: Tensor,
    col: Tensor,
    weight: Tensor | None,
    x: PackedFeatures,
    *,
    fast: bool | None = None,
) -> Tensor:
    """Add up the weighted features of the neighbours: ``A @ X`` for a CSR matrix A.

    Args:
        crow:
            Start of each row of A among its edges, ``[R + 1]`` int64.
        col:
            Source node of each edge, ``[E]``.
        weight:
            Weight of each edge, ``[E]`` float32, or ``None`` for 1.
        x:
            Packed features ``[N, F]``.
        fast:
            Whether to use the compiled kernel; by default where it is faster: installed, on the
            CPU and at least :data:`NARROW_COLUMNS` features.

    Returns:
        Sums, ``[R, F]`` float32.

    Raises:
        ValueError:
            If the parts of A do not fit one another or ``x``.
    """
    check_graph(crow, col, weight, x.shape[0])
    if weight is None:
        weight = x.scale.new_ones(len(col))
    if fast is None:
        fast = kernels.has_kernels(x.device) and x.num_columns >= NARROW_COLUMNS
    return (_aggregate_compiled if fast else _aggregate_unpacked)(crow, col, weight, x)


def check_graph(crow: Tensor, col: Tensor, weight: Tensor | None, num_nodes: int) -> None:
    """Check the parts of a CSR matrix: a kernel would read beyond its arrays.

    Raises:
        ValueError:
            If they do not fit one another or the number of nodes.
    """
    fits = crow.dim() == 1 and len(crow) > 0 and int(crow[0]) == 0 and int(crow[-1]) == len(col)
    if not fits or bool((crow.diff() < 0).any()):
        raise ValueError(f"crow: expected to rise from 0 to the {len(col)} edges")
    if len(col) and not 0 <= int(col.min()) <= int(col.max()) < num_nodes:
        raise ValueError(f"col: expected nodes 0 to {num_nodes - 1}, got {int(col.max())}")
    if weight is not None and weight.shape != col.shape:
        raise ValueError(f"weight: expected {list(col.shape)}, got {list(weight.shape)}")


def _aggregate_compiled(crow: Tensor, col: Tensor, weight: Tensor, x: PackedFeatures) -> Tensor:
    from sgquant_optuna.packed import numba_kernels

    out = torch.empty(len(crow) - 1, x.num_columns)
    num_full = sum(
        len(x.packed_rows(b)) for b, q in enumerate(x.bit_widths) if q == FULL_PRECISION
    )
    full = x.data[: 4 * num_full * x.num_columns].view(torch.float32)
    with numba_kernels.LOCK:
        numba_kernels.aggregate(
            crow.numpy(),
            col.numpy(),
            weight.detach().float().numpy(),
            x.data.numpy(),
            full.view(num_full, x.num_columns).numpy(),
            torch.tensor(x.starts).numpy(),
            torch.tensor([x.packed_rows(b).shape[1] for b in range(len(x.bit_widths))]).numpy(),
            kernels.plane_table(x.bit_widths),
            x.bucket.numpy(),
            x.position.numpy(),
            x.scale.numpy(),
            x.zero_point.numpy(),
            x.ranges_by_row,
            out.numpy(),
        )
    return out


def _aggregate_unpacked(crow: Tensor, col: Tensor, weight: Tensor, x: PackedFeatures) -> Tensor:
    """Multiply by some columns of all nodes at a time, so that they fit workspace and cache."""
    num_rows, num_nodes = len(crow) - 1, x.shape[0]
    out = x.scale.new_zeros(num_rows, x.num_columns)
    step = max(1, WORKSPACE_VALUES // max(1, num_nodes))
    for start in range(0, x.num_columns, step):
        stop = min(start + step, x.num_columns)
        dense = _columns(x, start, stop)
        for rows, entries in row_blocks(crow, BLOCK_EDGES, max(1, BLOCK_VALUES // step)):
            part = csr(
                crow[rows.start : rows.stop + 1] - entries.start,
                col[entries],
                weight[entries],
                (rows.stop - rows.start, num_nodes),
            )
            out[rows, start:stop] = part @ dense
    return out


def _columns(x: PackedFeatures, start: int, stop: int) -> Tensor:
    """Bring some columns of all nodes back to float32, ``[N, stop - start]``."""
    out = x.scale.new_empty(x.shape[0], stop - start)
    block_rows = max(1, BLOCK_VALUES // max(1, stop - start))
    for number in range(len(x.bit_widths)):
        packed = x.packed_rows(number)
        for rows, nodes in x.bucket_blocks(number, block_rows):
            out[nodes] = x.decode(packed[rows], number, nodes, slice(start, stop))
    return out
