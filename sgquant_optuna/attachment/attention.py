"""Quantized attention: a subclass of each PyG convolution that computes coefficients.

Each convolution computes its attention in a method of its own, so each needs its own subclass.
Attaching changes the class of an existing instance. ``isinstance``, ``deepcopy`` and
``torch.compile`` still work on it; ``torch.compile`` would silently skip PyG's own hooks.
"""

from __future__ import annotations

import math
from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import AGNNConv, GATConv, GATv2Conv, TransformerConv
from torch_geometric.utils import softmax

from sgquant_optuna.attachment.class_switch import derive_class
from sgquant_optuna.exceptions import UnsupportedConvError

Conv = TypeVar("Conv", bound=nn.Module)


def quantize_attention(conv: nn.Module, alpha: Tensor) -> Tensor:
    """Quantize attention coefficients with the quantizer of a convolution.

    Registered subclasses call it after the softmax and before dropout, because dropped edges
    must stay exactly zero.

    Args:
        conv:
            Convolution with an attention quantizer.
        alpha:
            Attention coefficients of all edges, ``[E, H]`` or ``[E]``.

    Returns:
        Quantized coefficients, in the shape of ``alpha``.

    Raises:
        AttributeError:
            If ``conv`` has no attention quantizer.

    Reference:
        SGQuant (Feng et al., 2020, arXiv:2007.05100), which quantizes the attention matrix as it
        quantizes the embedding matrix.
    """
    quantizer = conv.get_submodule("attention_quantizer")
    if alpha.dim() == 1:
        return quantizer(alpha.unsqueeze(1)).squeeze(1)  # type: ignore[no-any-return]
    return quantizer(alpha)  # type: ignore[no-any-return]


class _QuantizedEdgeUpdate:
    """Quantizes the result of ``edge_update`` between its softmax and its dropout."""

    dropout: float
    training: bool

    def _quantized(self, alpha: Tensor, dropout: float) -> Tensor:
        assert isinstance(self, nn.Module)
        alpha = quantize_attention(self, alpha)
        return F.dropout(alpha, p=dropout, training=self.training)


class QuantizedGATConv(_QuantizedEdgeUpdate, GATConv):
    """:class:`~torch_geometric.nn.GATConv` with quantized attention, ``[E, H]``.

    Reference:
        Veličković et al., "Graph Attention Networks", 2018.
    """

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
    """:class:`~torch_geometric.nn.GATv2Conv` with quantized attention, ``[E, H]``.

    Reference:
        Brody et al., "How Attentive are Graph Attention Networks?", 2022.
    """

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
    """:class:`~torch_geometric.nn.AGNNConv` with quantized attention, ``[E]``.

    Reference:
        Thekumparampil et al., "Attention-based Graph Neural Network for Semi-supervised
        Learning", 2018.
    """

    def message(
        self,
        x_j: Tensor,
        x_norm_i: Tensor,
        x_norm_j: Tensor,
        index: Tensor,
        ptr: Tensor | None,
        size_i: int | None,
    ) -> Tensor:
        """Compute attention as the plain class does, and quantize it before it is used."""
        # alpha = softmax(beta * cos(x_i, x_j)); the features are normalized already.
        alpha = self.beta * (x_norm_i * x_norm_j).sum(dim=-1)
        alpha = quantize_attention(self, softmax(alpha, index, ptr, size_i))
        return x_j * alpha.view(-1, 1)


class QuantizedTransformerConv(TransformerConv):
    """:class:`~torch_geometric.nn.TransformerConv` with quantized attention, ``[E, H]``.

    Reference:
        Shi et al., "Masked Label Prediction: Unified Message Passing Model for Semi-Supervised
        Classification", 2021.
    """

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
        # alpha = softmax(q_i k_j / sqrt(d)) for each head, with d output channels.
        alpha = (query_i * key_j).sum(dim=-1) / math.sqrt(self.out_channels)
        alpha = quantize_attention(self, softmax(alpha, index, ptr, size_i))
        self._alpha = alpha
        alpha = F.dropout(alpha, p=self.dropout, training=self.training)
        out = value_j if edge_attr is None else value_j + edge_attr
        return out * alpha.view(-1, self.heads, 1)


_QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {}


def register_attention(conv_class: type[Conv], quantized_class: type[Conv]) -> None:
    """Register the class that quantizes the attention of a convolution.

    Args:
        conv_class:
            Plain convolution.
        quantized_class:
            Subclass without ``__init__`` that passes its coefficients through
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
    """Return the class that quantizes the attention of ``conv``, or ``None`` if there is none.

    Raises:
        UnsupportedConvError:
            If ``conv`` is a subclass of a registered convolution and overrides the method that
            computes attention.
    """
    known = next((one for one in _QUANTIZED if isinstance(conv, one)), None)
    if type(conv) in _QUANTIZED or known is None:
        return _QUANTIZED.get(type(conv))
    for name in set(vars(_QUANTIZED[known])) & {"message", "edge_update", "forward"}:
        if getattr(type(conv), name) is not getattr(known, name):
            raise UnsupportedConvError(
                f"{type(conv).__name__} has its own {known.__name__}.{name}; register a class "
                f"that quantizes its attention with register_attention()"
            )
    return _with_attention(type(conv))


def _with_attention(conv_class: type[nn.Module]) -> type[nn.Module]:
    """Return the quantizing class of a subclass of a registered convolution."""
    if conv_class not in _QUANTIZED:
        known = next(one for one in _QUANTIZED if issubclass(conv_class, one))
        # Kept in the registry, so that all instances of a class share one quantizing class.
        _QUANTIZED[conv_class] = derive_class(
            _with_attention, conv_class, _QUANTIZED[known], name=f"Quantized{conv_class.__name__}"
        )
    return _QUANTIZED[conv_class]


register_attention(GATConv, QuantizedGATConv)
register_attention(GATv2Conv, QuantizedGATv2Conv)
register_attention(AGNNConv, QuantizedAGNNConv)
register_attention(TransformerConv, QuantizedTransformerConv)
