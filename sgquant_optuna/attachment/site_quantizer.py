"""The quantizer of one site in a model, and the state that all sites of the model share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from sgquant_optuna.attachment.dropout import DropoutRecorder, before_dropout
from sgquant_optuna.quantization.quantizers import FeatureQuantizer


@dataclass(eq=False)  # `==` of tensors is elementwise
class GraphContext:
    """State that all quantizers of one model share.

    Args:
        expected:
            Names of all quantizers of the model, ``layer/component``.
        num_buckets:
            Number of degree buckets B.
        x:
            Features of the bound graph, ``[N, F]``.
        degree_bucket:
            Degree bucket of each node of the bound graph, ``[N]`` int64.
    """

    expected: tuple[str, ...]
    num_buckets: int
    x: Tensor | None = None
    degree_bucket: Tensor | None = None
    used: set[str] = field(default_factory=set)
    """Names of the quantizers that the current forward pass has called."""
    observations: dict[str, list[Tensor]] | None = None
    """Values that each quantizer was called with during calibration, otherwise ``None``."""
    recorders: list[DropoutRecorder] = field(default_factory=list)
    """Dropout recorders of the current forward passes, which may be nested."""

    def __deepcopy__(self, memo: dict[int, object]) -> GraphContext:
        """Copy the state, but share the tensors of the graph: no quantizer writes to them."""
        return replace(self, used=set(), recorders=[])


class SiteQuantizer(nn.Module):
    """The quantizer of one layer and component, with the graph that the model is called with.

    Args:
        quantizer:
            Quantizer of plain tensors.
        graph:
            State that all quantizers of the model share.
    """

    def __init__(self, quantizer: FeatureQuantizer, graph: GraphContext) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.graph = graph
        self._input: tuple[Tensor, int, tuple[int, ...], Tensor] | None = None

    @property
    def name(self) -> str:
        """Name of layer and component, ``layer/component``."""
        return self.quantizer.name

    def forward(self, x: Tensor) -> Tensor:
        """Record ``x`` during calibration, otherwise fake-quantize it.

        A result of dropout is quantized as it was before dropout, and the same mask is applied
        afterwards. The stored value is the feature without training noise, and dropout scales
        features by 1 / (1 - p), out of the calibrated range.

        Args:
            x:
                Features, ``[N, F]``, or attention coefficients, ``[E, H]``.

        Returns:
            Values in the shape of ``x``; ``x`` itself during calibration or at 32 bits.

        Raises:
            CalibrationError:
                If the rows do not fit the buckets, or a bucket had no rows at calibration.
        """
        self.graph.used.add(self.name)
        if self.graph.observations is not None:
            self.graph.observations.setdefault(self.name, []).append(x)
            return x
        if self.quantizer.is_identity:
            return x
        undropped, mask = before_dropout(x)
        quantized = self._quantize(undropped)
        return quantized if mask is None else mask(quantized)

    def _quantize(self, x: Tensor) -> Tensor:
        bucket = self.graph.degree_bucket if self.quantizer.num_buckets > 1 else None
        if x is not self.graph.x or x.requires_grad:
            quantized: Tensor = self.quantizer(x, bucket)
            return quantized
        # The input features are the same in every epoch: quantize them once.
        key = (x._version, self.quantizer.bit_widths)
        if self._input is None or self._input[0] is not x or self._input[1:3] != key:
            with torch.no_grad():
                self._input = (x, *key, self.quantizer(x, bucket))
        return self._input[3]
