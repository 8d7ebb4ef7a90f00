"""Linear and aggregation on packed features, with a bounded float32 workspace."""

from __future__ import annotations

import torch
from torch import Tensor

from sgquant_optuna.bit_widths import FULL_PRECISION
from sgquant_optuna.packed.fast import has_kernels, plane_table
from sgquant_optuna.packed.features import BLOCK_ROWS, PackedFeatures
from sgquant_optuna.quantization.packing import unpack

NARROW_COLUMNS = 128
"""Below this, unpacking blocks and multiplying them beats the kernel that unpacks each edge."""
WORKSPACE_VALUES = 1 << 22
"""Float32 values that may exist beside the output: 16 MiB."""


def linear(
    x: PackedFeatures, weight: Tensor, bias: Tensor | None = None, *, fast: bool | None = None
) -> Tensor:
    """Multiply packed features by a matrix, one block of rows at a time.

    Args:
        x:
            Packed features ``[N, F]``.
        weight:
            ``[H, F]``, as in ``torch.nn.functional.linear``.
        bias:
            ``[H]``.
        fast:
            Whether to unpack by the compiled kernels; ``None`` takes them where installed.

    Returns:
        ``[N, H]`` float32.

    Raises:
        ValueError:
            If the weight does not have F columns.
    """
    if weight.dim() != 2 or weight.shape[1] != x.num_columns:
        raise ValueError(f"weight: expected [H, {x.num_columns}], got {list(weight.shape)}")
    fast = _use_kernels(x, fast)
    out = x.scale.new_empty(x.shape[0], weight.shape[0])
    block_rows = max(1, min(2 * BLOCK_ROWS if fast else BLOCK_ROWS, x.shape[0]))
    block_rows = max(1, min(block_rows, WORKSPACE_VALUES // (x.num_columns + 8)))
    # One buffer for all blocks: the kernel of the system would have to zero a fresh one each time.
    buffer = torch.empty(block_rows, x.num_columns + 8) if fast else None
    for b, width in enumerate(x.bit_widths):
        packed = x.packed_rows(b)
        by_column = x.scale.shape[1] > 1
        # scale * codes @ W: the scale goes to the smaller side.
        scaled = weight.t() * x.scale[b, :, None] if by_column else weight.t()
        for rows, nodes in x.blocks(b, block_rows):
            if width == FULL_PRECISION:
                out[nodes] = packed[rows].view(torch.float32) @ weight.t()
                continue
            line = nodes if x.ranges_by_row else slice(b, b + 1)
            product = _codes(packed[rows], x.num_columns, width, buffer) @ scaled
            if not by_column:
                product *= x.scale[line]
            shift = x.zero_point[line].expand(-1, x.num_columns) @ weight.t()
            out[nodes] = product + shift
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
            Whether to use the compiled kernel; ``None`` takes it where it is faster: installed,
            on the CPU and at least :data:`NARROW_COLUMNS` features.

    Returns:
        ``[R, F]`` float32.

    Raises:
        ValueError:
            If the parts of A do not fit one another or ``x``.
    """
    check_graph(crow, col, weight, x.shape[0])
    if weight is None:
        weight = x.scale.new_ones(len(col))
    wide = x.num_columns >= NARROW_COLUMNS
    if _use_kernels(x, wide if fast is None and has_kernels() else fast):
        return _aggregate_compiled(crow, col, weight, x)
    out = x.scale.new_zeros(len(crow) - 1, x.num_columns)
    row = torch.arange(len(out), device=col.device).repeat_interleave(crow.diff())
    edges = max(1, WORKSPACE_VALUES // max(1, 2 * x.num_columns))
    for start in range(0, len(col), edges):
        part = slice(start, start + edges)
        out.index_add_(0, row[part], x.rows(col[part].long()).mul_(weight[part, None]))
    return out


def check_graph(crow: Tensor, col: Tensor, weight: Tensor | None, num_nodes: int) -> None:
    """Check the parts of a CSR matrix; a kernel would read beyond its arrays.

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


def _use_kernels(x: PackedFeatures, fast: bool | None) -> bool:
    if fast is None:
        return has_kernels() and x.data.device.type == "cpu"
    return fast


def _codes(packed: Tensor, num_columns: int, bit_width: int, buffer: Tensor | None) -> Tensor:
    """Unpack rows to float32 codes, ``[R, F]``; into ``buffer`` by the kernel if there is one."""
    if buffer is None:
        return unpack(packed, num_columns, bit_width).float()
    from sgquant_optuna.packed import kernels

    out = buffer[: len(packed)]
    with kernels.LOCK:
        kernels.unpack_rows(packed.numpy(), plane_table([bit_width])[0], num_columns, out.numpy())
    return out[:, :num_columns]


def _aggregate_compiled(crow: Tensor, col: Tensor, weight: Tensor, x: PackedFeatures) -> Tensor:
    from sgquant_optuna.packed import kernels

    out = torch.empty(len(crow) - 1, x.num_columns)
    num_full = sum(
        len(x.packed_rows(b)) for b, q in enumerate(x.bit_widths) if q == FULL_PRECISION
    )
    full = x.data[: 4 * num_full * x.num_columns].view(torch.float32)
    strides = torch.tensor([x.packed_rows(b).shape[1] for b in range(len(x.bit_widths))])
    graph = (crow.numpy(), col.numpy(), weight.detach().float().numpy())
    rows = (
        x.data.numpy(),
        full.view(num_full, x.num_columns).numpy(),
        torch.tensor(x.starts).numpy(),
        strides.numpy(),
        plane_table(x.bit_widths),
        x.bucket.numpy(),
        x.position.numpy(),
    )
    scale, zero_point = x.scale.numpy(), x.zero_point.numpy()
    with kernels.LOCK:
        if scale.shape[1] > 1:
            kernels.aggregate_by_column(*graph, *rows, scale, zero_point, out.numpy())
        else:
            ranges = scale[:, 0].copy(), zero_point[:, 0].copy()
            kernels.aggregate(*graph, *rows, *ranges, x.ranges_by_row, out.numpy())
    return out
