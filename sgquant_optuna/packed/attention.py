"""Attention of GAT, GATv2 and AGNN, one block of destination nodes at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sgquant_optuna.packed.operations import WORKSPACE_VALUES, check_graph

Scores = Callable[[Tensor, Tensor], Tensor]
"""Takes destination and source of some edges, ``[e]`` each; returns scores, ``[e, H]``."""
BLOCK_EDGES = 1 << 16


def gat_scores(by_source: Tensor, by_target: Tensor, negative_slope: float = 0.2) -> Scores:
    """Scores of GAT from what each node adds, ``[N, H]`` each."""
    return lambda target, source: F.leaky_relu(
        by_source[source] + by_target[target], negative_slope
    )


def gatv2_scores(
    x_source: Tensor, x_target: Tensor, attention: Tensor, negative_slope: float = 0.2
) -> Scores:
    """Scores of GATv2 from ``[N, H, C]`` features and the ``[1, H, C]`` attention vector."""
    return lambda target, source: (
        F.leaky_relu(x_source[source] + x_target[target], negative_slope) * attention
    ).sum(dim=-1)


def agnn_scores(x: Tensor, beta: Tensor) -> Scores:
    """Scores of AGNN: ``beta`` times the cosine of the features, ``[N, F]``; one head."""
    unit = F.normalize(x, dim=-1)
    return lambda target, source: beta * (unit[target] * unit[source]).sum(-1, keepdim=True)


def attend(
    crow: Tensor,
    col: Tensor,
    scores: Scores,
    values: Callable[[Tensor], Tensor],
    quantize: Callable[[Tensor], Tensor] | None = None,
    *,
    block_edges: int = BLOCK_EDGES,
) -> Tensor:
    """Compute, quantize and use attention without ever holding that of all edges.

    A block holds whole neighbourhoods. One that is larger than a block is gone through three
    times, for the largest score, their sum and the result, so the workspace stays bounded.

    Args:
        crow:
            Start of each destination among the edges, ``[R + 1]`` int64.
        col:
            Source of each edge, ``[E]`` int64.
        scores:
            Attention before softmax of some edges.
        values:
            Takes nodes, ``[n]``; returns their features, ``[n, H, C]`` (unpack them there).
        quantize:
            Fake-quantizes attention, ``[e, H]``; ``None`` leaves it.
        block_edges:
            Edges of a block.

    Returns:
        ``[R, H, C]`` float32; 0 for nodes without edges.

    Raises:
        ValueError:
            If ``crow`` and ``col`` do not fit.
    """
    check_graph(crow, col, None, int(col.max()) + 1 if len(col) else 0)
    blocks, row = [], 0
    while row < len(crow) - 1:
        limit = int(crow[row]) + block_edges
        end = max(row + 1, int(torch.searchsorted(crow, limit, right=True)) - 1)
        blocks.append(_block(crow[row : end + 1], col, scores, values, quantize, row, block_edges))
        row = end
    return torch.cat(blocks) if blocks else values(col[:0])


def _block(
    crow: Tensor,
    col: Tensor,
    scores: Scores,
    values: Callable[[Tensor], Tensor],
    quantize: Callable[[Tensor], Tensor] | None,
    first_row: int,
    block_edges: int,
) -> Tensor:
    low, high = int(crow[0]), int(crow[-1])
    num_rows = len(crow) - 1
    local = torch.arange(num_rows, device=col.device).repeat_interleave(crow.diff())
    # One part, unless a single node has more neighbours than a block has edges.
    parts = [slice(a, min(a + block_edges, high)) for a in range(low, high, block_edges)]

    def of(part: slice) -> tuple[Tensor, Tensor, Tensor]:
        target = local[part.start - low : part.stop - low]
        return target, col[part], scores(target + first_row, col[part])

    only = of(parts[0]) if len(parts) == 1 else None
    largest = total = None
    for part in parts:
        target, _, score = only or of(part)
        if largest is None:
            largest = score.new_full((num_rows, score.shape[1]), -torch.inf)
        largest.scatter_reduce_(0, target[:, None].expand_as(score), score, "amax")
    for part in parts:
        target, _, score = only or of(part)
        assert largest is not None
        total = torch.zeros_like(largest) if total is None else total
        total.index_add_(0, target, (score - largest[target]).exp())
    out: Tensor | None = None
    for part in parts:
        target, source, score = only or of(part)
        assert largest is not None and total is not None
        alpha = (score - largest[target]).exp() / (total[target] + 1e-16)  # as PyG's softmax
        if quantize is not None:
            alpha = quantize(alpha)
        out = _add_messages(out, num_rows, target, source, alpha, values)
    return values(col[:0]).new_zeros(num_rows, *values(col[:0]).shape[1:]) if out is None else out


def _add_messages(
    out: Tensor | None,
    num_rows: int,
    target: Tensor,
    source: Tensor,
    alpha: Tensor,
    values: Callable[[Tensor], Tensor],
) -> Tensor:
    """Add up the weighted features of some edges, a few at a time: they are ``[e, H, C]``."""
    size = values(source[:1])[0].numel()
    step = max(1, WORKSPACE_VALUES // max(1, 2 * size))
    for start in range(0, len(source), step):
        part = slice(start, start + step)
        nodes, of_edge = source[part].unique(return_inverse=True)
        x = values(nodes)
        if out is None:
            out = x.new_zeros(num_rows, *x.shape[1:])
        out.index_add_(0, target[part], alpha[part, :, None] * x[of_edge])
    assert out is not None
    return out
