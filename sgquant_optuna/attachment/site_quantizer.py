"""What all quantizers of one model share: the graph at hand and the forward pass that runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from sgquant_optuna.attachment.dropout import DropoutRecorder, before_dropout
from sgquant_optuna.quantization.quantizers import FeatureQuantizer


@dataclass(eq=False)  # comparing tensors is no yes or no
class GraphContext:
    """State of one quantized model.

    Args:
        expected:
            Names of all its quantizers, ``layer/component``.
        num_buckets:
            Number of degree buckets B.
    """

    expected: tuple[str, ...]
    num_buckets: int
    x: Tensor | None = None
    degree_bucket: Tensor | None = None
    used: set[str] = field(default_factory=set)
    """Quantizers that the running forward pass has reached."""
    observations: dict[str, list[Tensor]] | None = None
    """Values seen by each quantizer while ranges are measured, else ``None``."""
    recorders: list[DropoutRecorder] = field(default_factory=list)
    """One for each nested forward pass."""

    def __deepcopy__(self, memo: dict[int, object]) -> GraphContext:
        """Copy the state, but share the graph's tensors: no quantizer writes to them."""
        return replace(self, used=set(), recorders=[])


class SiteQuantizer(nn.Module):
    """A quantizer at its place in a model: it knows the graph that the model is called with.

    Args:
        quantizer:
            The quantizer of plain tensors.
        graph:
            Shared by all quantizers of the model.
    """

    def __init__(self, quantizer: FeatureQuantizer, graph: GraphContext) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.graph = graph
        self._input: tuple[Tensor, int, tuple[int, ...], Tensor] | None = None

    @property
    def name(self) -> str:
        """Where it stands, ``layer/component``."""
        return self.quantizer.name

    def forward(self, x: Tensor) -> Tensor:
        """Observe ``x`` while ranges are measured, else fake-quantize it.

        What was dropped out just before is quantized as it was before: what has to be stored is
        the feature, not its training noise, which would be scaled out of the calibrated range.
        """
        self.graph.used.add(self.name)
        if self.graph.observations is not None:
            self.graph.observations.setdefault(self.name, []).append(x)
            return x
        if self.quantizer.is_identity:
            return x
        kept, mask = before_dropout(x)
        quantized = self._quantize(kept)
        return quantized if mask is None else mask(quantized)

    def _quantize(self, x: Tensor) -> Tensor:
        bucket = self.graph.degree_bucket if self.quantizer.num_buckets > 1 else None
        if x is not self.graph.x or x.requires_grad:
            quantized: Tensor = self.quantizer(x, bucket)
            return quantized
        # The graph's own features do not change from epoch to epoch.
        key = (x._version, self.quantizer.bit_widths)
        if self._input is None or self._input[0] is not x or self._input[1:3] != key:
            with torch.no_grad():
                self._input = (x, *key, self.quantizer(x, bucket))
        return self._input[3]
