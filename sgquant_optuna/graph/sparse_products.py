"""Products with a sparse matrix of a fixed pattern, whose transpose is ordered only once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class CsrPattern:
    """Places of the non-zeros of a matrix, by rows and by columns.

    Args:
        crow:
            Start of each row among the non-zeros, ``[N + 1]``.
        col:
            Column of each non-zero, ``[nnz]``.
        shape:
            Number of rows and columns, ``(N, F)``.
    """

    def __init__(self, crow: Tensor, col: Tensor, shape: tuple[int, int]) -> None:
        self.crow, self.col, self.shape = crow, col, shape
        self.row = torch.arange(shape[0], device=crow.device).repeat_interleave(crow.diff())
        self._by_column = (self.col * shape[0] + self.row).argsort()
        self._transposed_crow = F.pad(torch.bincount(col, minlength=shape[1]).cumsum(0), (1, 0))
        self._transposed_col = self.row[self._by_column]

    def matmul(self, values: Tensor, dense: Tensor) -> Tensor:
        """Multiply the matrix by ``dense``: ``[N, F] @ [F, H]``."""
        return csr(self.crow, self.col, values, self.shape) @ dense

    def transposed_matmul(self, values: Tensor, dense: Tensor) -> Tensor:
        """Multiply the transposed matrix by ``dense``: ``[F, N] @ [N, H]``."""
        return (
            csr(
                self._transposed_crow,
                self._transposed_col,
                values[self._by_column],
                (self.shape[1], self.shape[0]),
            )
            @ dense
        )


def csr(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Make a sparse CSR tensor from parts that are known to fit."""
    return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)


class SparseMatmul(torch.autograd.Function):
    """``A @ dense`` for a sparse A, differentiable by ``dense`` (A itself takes no gradient)."""

    @staticmethod
    def forward(ctx: Any, pattern: CsrPattern, values: Tensor, dense: Tensor) -> Tensor:
        """Multiply ``[N, F] @ [F, H]``."""
        ctx.pattern, ctx.values = pattern, values
        return pattern.matmul(values, dense)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:
        """Return the gradient by ``dense``, ``[F, H]``."""
        (grad,) = grads
        return None, None, ctx.pattern.transposed_matmul(ctx.values, grad.contiguous())


class AttentionMatmul(torch.autograd.Function):
    """``out[i, h] = sum_j alpha[(i, j), h] * x[j, h]``, without a message for each edge.

    The gradient by ``alpha`` is a sampled dense product, which needs no messages either.

    Reference:
        Weighted sum of the neighbours: Velickovic et al., Graph Attention Networks, eq. 4.
    """

    @staticmethod
    def forward(ctx: Any, pattern: CsrPattern, alpha: Tensor, x: Tensor) -> Tensor:
        """Multiply ``alpha`` (``[E, H]``, ordered as the pattern) by ``x`` (``[N, H, C]``)."""
        ctx.pattern = pattern
        ctx.save_for_backward(alpha, x)
        heads = zip(_by_head(alpha), _by_head(x), strict=True)
        return torch.stack([pattern.matmul(weights, values) for weights, values in heads], dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor]:
        """Return the gradients by ``alpha`` and by ``x``."""
        alpha, x = ctx.saved_tensors
        pattern: CsrPattern = ctx.pattern
        zeros = csr(pattern.crow, pattern.col, torch.zeros_like(alpha[:, 0]), pattern.shape)
        by_alpha, by_x = [], []
        for weights, values, grad in zip(
            _by_head(alpha), _by_head(x), _by_head(grads[0]), strict=True
        ):
            by_alpha.append(torch.sparse.sampled_addmm(zeros, grad, values.t()).values())
            by_x.append(pattern.transposed_matmul(weights, grad))
        return None, torch.stack(by_alpha, dim=1), torch.stack(by_x, dim=1)


def _by_head(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous()
