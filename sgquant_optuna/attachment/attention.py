"""Attention quantizers: where each convolution computes its coefficients.

Every convolution has its own place, so each gets a subclass that its instances are switched to.
A switched instance still passes ``isinstance``, ``deepcopy`` and ``torch.compile``; PyG's own
hooks would be skipped silently by the latter.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import AGNNConv, GATConv, GATv2Conv, TransformerConv
from torch_geometric.utils import softmax

from sgquant_optuna.exceptions import UnsupportedConvError

Conv = TypeVar("Conv", bound=nn.Module)


def quantize_attention(conv: nn.Module, alpha: Tensor) -> Tensor:
    """Quantize attention coefficients ``[E, H]`` or ``[E]`` with the quantizer of ``conv``.

    To be called by registered subclasses, after the softmax and before dropout: dropped edges
    must stay exactly zero.
    """
    quantizer = conv.get_submodule("attention_quantizer")
    if alpha.dim() == 1:
        return quantizer(alpha.unsqueeze(1)).squeeze(1)  # type: ignore[no-any-return]
    return quantizer(alpha)  # type: ignore[no-any-return]


class _QuantizedEdgeUpdate:
    """Quantizes what ``edge_update`` returns, between its softmax and its dropout."""

    dropout: float
    training: bool

    def _quantized(self, alpha: Tensor, dropout: float) -> Tensor:
        assert isinstance(self, nn.Module)
        alpha = quantize_attention(self, alpha)
        return F.dropout(alpha, p=dropout, training=self.training)


class QuantizedGATConv(_QuantizedEdgeUpdate, GATConv):
    """:class:`~torch_geometric.nn.GATConv` with quantized attention, ``[E, H]``."""

    def edge_update(
        self,
        alpha_j: Tensor,
        alpha_i: Tensor | None,
        edge_attr: Tensor | None,
        index: Tensor,
        ptr: Tensor | None,
        dim_size: int | None,
    ) -> Tensor:
        """Compute attention without dropout, quantize it, then drop."""
        dropout, self.dropout = self.dropout, 0.0
        try:
            alpha = super().edge_update(alpha_j, alpha_i, edge_attr, index, ptr, dim_size)
        finally:
            self.dropout = dropout
        return self._quantized(alpha, dropout)


class QuantizedGATv2Conv(_QuantizedEdgeUpdate, GATv2Conv):
    """:class:`~torch_geometric.nn.GATv2Conv` with quantized attention, ``[E, H]``."""

    def edge_update(
        self,
        x_j: Tensor,
        x_i: Tensor,
        edge_attr: Tensor | None,
        index: Tensor,
        ptr: Tensor | None,
        dim_size: int | None,
    ) -> Tensor:
        """Compute attention without dropout, quantize it, then drop."""
        dropout, self.dropout = self.dropout, 0.0
        try:
            alpha = super().edge_update(x_j, x_i, edge_attr, index, ptr, dim_size)
        finally:
            self.dropout = dropout
        return self._quantized(alpha, dropout)


class QuantizedAGNNConv(AGNNConv):
    """:class:`~torch_geometric.nn.AGNNConv` with quantized attention, ``[E]``."""

    def message(
        self,
        x_j: Tensor,
        x_norm_i: Tensor,
        x_norm_j: Tensor,
        index: Tensor,
        ptr: Tensor | None,
        size_i: int | None,
    ) -> Tensor:
        """Compute attention as the plain class does, and quantize it before it weighs."""
        alpha = self.beta * (x_norm_i * x_norm_j).sum(dim=-1)
        alpha = quantize_attention(self, softmax(alpha, index, ptr, size_i))
        return x_j * alpha.view(-1, 1)


class QuantizedTransformerConv(TransformerConv):
    """:class:`~torch_geometric.nn.TransformerConv` with quantized attention, ``[E, H]``."""

    def message(
        self,
        query_i: Tensor,
        key_j: Tensor,
        value_j: Tensor,
        edge_attr: Tensor | None,
        index: Tensor,
        ptr: Tensor | None,
        size_i: int | None,
    ) -> Tensor:
        """Compute attention as the plain class does, and quantize it before dropout."""
        if self.lin_edge is not None:
            assert edge_attr is not None
            edge_attr = self.lin_edge(edge_attr).view(-1, self.heads, self.out_channels)
            key_j = key_j + edge_attr
        alpha = (query_i * key_j).sum(dim=-1) / math.sqrt(self.out_channels)
        alpha = quantize_attention(self, softmax(alpha, index, ptr, size_i))
        self._alpha = alpha
        alpha = F.dropout(alpha, p=self.dropout, training=self.training)
        out = value_j if edge_attr is None else value_j + edge_attr
        return out * alpha.view(-1, self.heads, 1)


_QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {}


def register_attention(conv_class: type[Conv], quantized_class: type[Conv]) -> None:
    """Tell how the attention of a convolution is quantized.

    Args:
        conv_class:
            The plain convolution.
        quantized_class:
            A subclass without ``__init__`` that passes its coefficients through
            :func:`quantize_attention`, after the softmax and before dropout.

    Raises:
        TypeError:
            If ``quantized_class`` is not a subclass of ``conv_class``.
    """
    if not issubclass(quantized_class, conv_class) or quantized_class is conv_class:
        raise TypeError(
            f"quantized class: expected a subclass of {conv_class.__name__}, got "
            f"{quantized_class.__name__}"
        )
    _QUANTIZED[conv_class] = quantized_class


def quantized_class(conv: nn.Module) -> type[nn.Module] | None:
    """Return the class that quantizes the attention of ``conv``, or ``None`` without attention.

    Raises:
        UnsupportedConvError:
            If ``conv`` is a subclass of a known convolution that computes attention in its own
            way.
    """
    if type(conv) in _QUANTIZED:
        return _QUANTIZED[type(conv)]
    for known, quantized in _QUANTIZED.items():
        if isinstance(conv, known):
            for name in set(vars(quantized)) & {"message", "edge_update", "forward"}:
                if getattr(type(conv), name) is not getattr(known, name):
                    raise UnsupportedConvError(
                        f"{type(conv).__name__} has its own {known.__name__}.{name}; tell how "
                        f"its attention is quantized with register_attention()"
                    )
            # Derived once and kept, so that every instance gets one and the same class.
            _QUANTIZED[type(conv)] = type(
                f"Quantized{type(conv).__name__}", (quantized, type(conv)), {}
            )
            return _QUANTIZED[type(conv)]
    return None


def switch_class(conv: nn.Module, to: type[nn.Module]) -> None:
    """Make ``conv`` an instance of the quantizing subclass ``to``."""
    conv.__dict__["plain_class"] = type(conv)
    conv.__class__ = to


def restore_class(conv: nn.Module) -> None:
    """Undo :func:`switch_class`."""
    plain: Any = conv.__dict__.pop("plain_class")
    conv.__class__ = plain


register_attention(GATConv, QuantizedGATConv)
register_attention(GATv2Conv, QuantizedGATv2Conv)
register_attention(AGNNConv, QuantizedAGNNConv)
register_attention(TransformerConv, QuantizedTransformerConv)
