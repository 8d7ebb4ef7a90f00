"""A trained model that is calibrated once and finetuned with many assignments of bit widths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sgquant_optuna.attachment.bypass_guard import check_effects
from sgquant_optuna.attachment.calibration import calibrate
from sgquant_optuna.attachment.quantized_model import attach, bind, set_bit_widths
from sgquant_optuna.graph.fixed_graph import FixedGraph
from sgquant_optuna.graph.forward_pass import Forward
from sgquant_optuna.graph.model_copies import copy_model
from sgquant_optuna.graph.model_runs import model_run
from sgquant_optuna.graph.tasks.task import Task
from sgquant_optuna.graph.training import NODE_CLASSIFICATION, TrainingResult, fit
from sgquant_optuna.graph.training_config import TrainingConfig
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.sites import BitWidths


class CalibratedModel:
    """A model with quantizers whose ranges are measured on one graph.

    The constructor measures the ranges. Each finetuning starts from a fresh copy of the model.

    Args:
        model:
            Trained full-precision model; it is copied and not changed.
        graph:
            Graph of all finetunings, with ``degree_bucket`` if there are several buckets.
        candidates:
            Bit widths to measure ranges for.
        quantizer:
            Settings of every quantizer.
        num_buckets:
            Number of degree buckets B.
        layers:
            Paths of the layers whose input features are quantized; ``None`` for the outermost
            convolutions and linear layers.
        attention:
            Paths of the convolutions whose attention is quantized; ``None`` for all with a
            registered class.
        forward:
            Function that calls the model with the graph.
        task:
            Items, loss and metric; node classification by default.

    Raises:
        CalibrationError:
            If a layer is called with NaN or infinity.
        GraphError:
            If ``degree_bucket`` is needed and missing, or out of range.
        ModelError:
            If the model cannot be quantized.
        QuantizerBypassedError:
            If the forward pass bypasses a quantizer.
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
        task: Task = NODE_CLASSIFICATION,
    ) -> None:
        self.graph, self._task = graph, task
        self._forward = forward
        self._model = attach(
            copy_model(model),
            config=quantizer,
            num_buckets=num_buckets,
            layers=layers,
            attention=attention,
        )
        with graph.speed_up(self._model) as data:
            self.layout = calibrate(
                self._model, data, candidates=candidates, forward=self._forward
            )

    def finetune(
        self, bits: BitWidths, config: TrainingConfig, *, seed: int
    ) -> tuple[nn.Module, TrainingResult]:
        """Finetune a copy of the model with the given bit widths.

        Args:
            bits:
                Bit width of each site of ``layout``.
            config:
                Epochs, learning rate, weight decay and patience.
            seed:
                Seed of dropout.

        Returns:
            The finetuned copy, and the result of its training.

        Raises:
            CalibrationError:
                If a width is not among the candidates.
            ModelError:
                If ``bits`` lacks a site of the model or names one that it does not have.

        Reference:
            SGQuant (Feng et al., 2020, arXiv:2007.05100), "Finetuning".
        """
        model = self.quantized(bits)
        done = fit(model, self.graph, config, seed=seed, forward=self._forward, task=self._task)
        return model, done

    def quantized(self, bits: BitWidths) -> nn.Module:
        """Return a copy of the model with the given bit widths, not finetuned.

        Raises:
            CalibrationError:
                If a width is not among the candidates.
            ModelError:
                If ``bits`` lacks a site of the model or names one that it does not have.
        """
        model = copy_model(self._model)
        # The input of the copy is recognised by identity, so it needs the shared graph's tensors.
        bind(model, self.graph.data)
        set_bit_widths(model, bits)
        return model

    def check_effects(self) -> None:
        """Refuse a site that the scores do not depend on.

        Raises:
            QuantizerBypassedError:
                If the quantizer of a site changes its values, but no score.
        """
        with self.graph.speed_up(self._model) as data:
            check_effects(self._model, lambda: self._forward(self._model, data))

    @torch.no_grad()
    def scores(self, model: nn.Module) -> Tensor:
        """Return the outputs that a finetuned copy gives all items, such as ``[N, C]``."""
        with model_run(model.eval(), self.graph, self._forward, self._task) as run:
            return run.all_outputs()
