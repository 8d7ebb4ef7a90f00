"""Attention of GAT, GATv2 and AGNN, one block of destination nodes at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sgquant_optuna.packed.operations import check_graph

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

    A block holds whole neighbourhoods, so it is as large as the largest of them at least.

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
        blocks.append(_block(crow[row : end + 1], col, scores, values, quantize, row))
        row = end
    return torch.cat(blocks) if blocks else values(col[:0])


def _block(
    crow: Tensor,
    col: Tensor,
    scores: Scores,
    values: Callable[[Tensor], Tensor],
    quantize: Callable[[Tensor], Tensor] | None,
    first_row: int,
) -> Tensor:
    source = col[int(crow[0]) : int(crow[-1])]
    num_rows = len(crow) - 1
    local = torch.arange(num_rows, device=col.device).repeat_interleave(crow.diff())
    score = scores(local + first_row, source)
    index = local[:, None].expand_as(score)
    largest = score.new_full((num_rows, score.shape[1]), -torch.inf)
    largest.scatter_reduce_(0, index, score, "amax")
    alpha = (score - largest[local]).exp()
    total = torch.zeros_like(largest).index_add_(0, local, alpha)
    alpha = alpha / (total[local] + 1e-16)  # as PyG's softmax
    if quantize is not None:
        alpha = quantize(alpha)
    nodes, of_edge = source.unique(return_inverse=True)
    x = values(nodes)
    out = x.new_zeros(num_rows, *x.shape[1:])
    # Messages are [e, H, C]: a few edges at a time keeps them to 16 MiB.
    step = max(1, (1 << 22) // max(1, x[:1].numel()))
    for start in range(0, len(source), step):
        part = slice(start, start + step)
        out.index_add_(0, local[part], alpha[part, :, None] * x[of_edge[part]])
    return out
