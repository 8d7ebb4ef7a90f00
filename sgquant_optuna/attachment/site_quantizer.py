"""The quantizer of one site in a model: a module that knows the graph it is called with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sgquant_optuna.attachment.dropout import before_dropout
from sgquant_optuna.attachment.graph_context import GraphContext, Observation, version
from sgquant_optuna.graph.node_types import ONLY_TYPE
from sgquant_optuna.quantization.per_tensor import PerTensor
from sgquant_optuna.quantization.quantizers import FeatureQuantizer


class SiteQuantizer(nn.Module):
    """The quantizer of one layer and component, with the graph that the model is called with.

    Args:
        quantizer:
            Quantizer of plain matrices.
        graph:
            State that all quantizers of the model share.
        node_type:
            Node type of the rows; ``None`` if it is not known.
        group:
            Layers of a heterogeneous model that share features, by the path that they have in
            common.
    """

    def __init__(
        self,
        quantizer: FeatureQuantizer,
        graph: GraphContext,
        node_type: str | None = ONLY_TYPE,
        group: str = "",
    ) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.graph = graph
        self.node_type = node_type
        self.group = group
        self._inputs: PerTensor[tuple[tuple[int, tuple[int, ...]], Tensor]] = PerTensor()

    @property
    def name(self) -> str:
        """Name of layer and component, ``layer/component``."""
        return self.quantizer.name

    def forward(self, x: Tensor, node_dim: int = 0) -> Tensor:
        """Record ``x`` during calibration, otherwise fake-quantize it.

        A result of dropout is quantized as it was before dropout, and the same mask is applied
        afterwards. The stored value is the feature without training noise, and dropout scales
        features by 1 / (1 - p), out of the calibrated range.

        Args:
            x:
                Features, ``[N, F]`` or with further leading dimensions, which are flattened into
                rows; or attention coefficients, ``[E, H]``.
            node_dim:
                Dimension of ``x`` that counts the nodes.

        Returns:
            Values in the shape of ``x``; ``x`` itself during calibration or at 32 bits.

        Raises:
            CalibrationError:
                If the rows do not fit the buckets, or a bucket had no rows at calibration.
        """
        self.graph.used.add(self.name)
        if self.graph.observations is not None:
            calls = self.graph.observations.setdefault(self.name, [])
            calls.append(Observation(x, node_dim, self))
            return x
        if self.quantizer.is_identity:
            return x
        undropped, mask = before_dropout(x)
        quantized = self._quantize(undropped, node_dim)
        if self.graph.changed is not None and not torch.equal(quantized, undropped):
            self.graph.changed.add(self.name)
        return quantized if mask is None else mask(quantized)

    def _quantize(self, x: Tensor, node_dim: int) -> Tensor:
        nodes = self.graph.of_type(self.node_type)
        bucket = nodes.buckets_of(x, node_dim) if self.quantizer.num_buckets > 1 else None
        if x.dim() != 2:
            flat: Tensor = self.quantizer(x.reshape(-1, x.shape[-1]), bucket)
            return flat.view(x.shape)
        if x is not nodes.x or x.requires_grad:
            quantized: Tensor = self.quantizer(x, bucket)
            return quantized
        # The input features, of a mini-batch too, are the same in every epoch: quantize them once.
        key = (version(x), self.quantizer.bit_widths)
        known = self._inputs.get(x)
        if known is None or known[0] != key:
            with torch.no_grad():
                known = (key, self.quantizer(x, bucket))
            self._inputs.set(x, known)
        return known[1]

    def forget_inputs(self) -> None:
        """Free the quantized input features, which are kept from epoch to epoch."""
        self._inputs.clear()
