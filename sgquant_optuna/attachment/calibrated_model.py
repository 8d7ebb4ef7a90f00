"""A trained model with calibrated quantizers on one graph, that is finetuned with any widths."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sgquant_optuna.attachment.calibration import calibrate
from sgquant_optuna.attachment.quantized_model import attach, bind, set_bit_widths
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.forward_pass import Forward
from sgquant_optuna.graph.training import TrainingResult, fit
from sgquant_optuna.graph.training_config import TrainingConfig
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.sites import BitWidths


class CalibratedModel:
    """Ranges are measured once, when it is made; each finetuning starts from a fresh copy.

    Args:
        model:
            Trained full-precision model; it is copied and stays as it is.
        graph:
            Graph of all finetunings, with ``degree_bucket`` if there are several buckets.
        candidates:
            Bit widths to measure ranges for.
        quantizer:
            Settings of every quantizer.
        num_buckets:
            Degree buckets B.
        layers:
            Paths of the layers whose inputs are quantized; all by default.
        attention:
            Paths of the convolutions whose attention is quantized; all known ones by default.
        forward:
            Function that calls the model with the graph.

    Raises:
        ModelError:
            If the model cannot be quantized.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: FixedGraph,
        *,
        candidates: Sequence[int],
        quantizer: QuantizerConfig,
        num_buckets: int,
        layers: Sequence[str] | None,
        attention: Sequence[str] | None,
        forward: Forward,
    ) -> None:
        self.graph = graph
        self._forward = forward
        self._model = attach(
            copy.deepcopy(model),
            config=quantizer,
            num_buckets=num_buckets,
            layers=layers,
            attention=attention,
        )
        with graph.speed_up(self._model) as data:
            self.layout = calibrate(self._model, data, candidates=candidates, forward=forward)

    def finetune(
        self, bits: BitWidths, config: TrainingConfig, *, seed: int
    ) -> tuple[nn.Module, TrainingResult]:
        """Return a copy that was finetuned with these widths, and how its training went."""
        model = copy.deepcopy(self._model)
        # The copy has its own context, which must see the very tensors of the shared graph.
        bind(model, self.graph.data)
        set_bit_widths(model, bits)
        return model, fit(model, self.graph, config, seed=seed, forward=self._forward)

    @torch.no_grad()
    def scores(self, model: nn.Module) -> Tensor:
        """Return the class scores of all nodes, ``[N, C]``, of a finetuned copy."""
        with self.graph.speed_up(model) as data:
            return self._forward(model.eval(), data)
