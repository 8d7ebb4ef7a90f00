"""The training loop, for full precision and for finetuning with quantizers."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from sgquant_optuna.exceptions import TaskError
from sgquant_optuna.graph.fixed_graph import ONE_AT_A_TIME, FixedGraph
from sgquant_optuna.graph.forward_pass import Forward, forward
from sgquant_optuna.graph.mini_batches import Chosen, Selection
from sgquant_optuna.graph.model_copies import copy_state, restore_state
from sgquant_optuna.graph.model_runs import ModelRun, feature_sizes_explained, model_run
from sgquant_optuna.graph.node_types import Graph
from sgquant_optuna.graph.tasks.ready import node_classification
from sgquant_optuna.graph.tasks.task import Task
from sgquant_optuna.graph.training_config import TrainingConfig

NODE_CLASSIFICATION = node_classification()


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training.

    Args:
        accuracy:
            Accuracy on the validation nodes at the lowest validation loss, in percent, or what
            else the metric of the task says; the model has the weights of that epoch.
        epochs:
            Number of epochs that were run.
        losses:
            Training loss of each epoch.
    """

    accuracy: float
    epochs: int
    losses: tuple[float, ...]


def fit(
    model: nn.Module,
    data: Graph | FixedGraph,
    config: TrainingConfig | None = None,
    *,
    seed: int = 0,
    forward: Forward = forward,
    task: Task = NODE_CLASSIFICATION,
    on_epoch: Callable[[int, float], None] | None = None,
) -> TrainingResult:
    """Train in place on ``train_mask``, and keep the weights of the lowest loss on ``val_mask``.

    The epoch is chosen by the loss, because the best of many accuracies is partly chance: over 5
    seeds of GCN on Cora, the spread on unseen nodes is 0.5 instead of 1.2 percentage points. The
    initial weights are a candidate too, so finetuning never raises the validation loss. A loss
    that is not finite ends the training, with the best weights until then. The test nodes are
    never used.

    Dropout draws from the random state of the process. One training runs at a time, and other
    threads wait: processes are the way to train in parallel.

    Args:
        model:
            Module that returns class scores, ``[N, C]``, or other outputs of the task.
        data:
            Graph with ``x``, ``edge_index``, ``y`` (``[N]`` int64), ``train_mask`` and
            ``val_mask`` (``[N]`` bool), or what else the task needs.
        config:
            Epochs, learning rate, weight decay, patience; by default ``TrainingConfig()``.
        seed:
            Seed of dropout. The global random state is restored, after an exception too.
        forward:
            Function that calls the model with the graph; :func:`.columns` makes one.
        task:
            Items, loss and metric; node classification by default.
        on_epoch:
            Function of epoch and validation accuracy in percent (or other metric), called after
            each epoch; it may raise an exception to stop the training.

    Returns:
        Validation accuracy, number of epochs and training losses.

    Raises:
        GraphError:
            If the graph lacks a column, or a mask is empty or overlaps another.
        ModelError:
            If the model does not return a score of each class for each node, or takes another
            number of features.

    Reference:
        SGQuant (Feng et al., 2020, arXiv:2007.05100), "Finetuning": a quantized model is trained
        as a full-precision one; its quantizers pass the gradient straight through.
    """
    config = config or TrainingConfig()
    fixed = data if isinstance(data, FixedGraph) else FixedGraph(data)
    fixed.check(task.check)
    targets = task.targets(fixed.data)
    devices = [targets.device] if targets.is_cuda else []
    with (
        ONE_AT_A_TIME,
        torch.random.fork_rng(devices),
        model_run(model, fixed, forward, task) as run,
        torch.enable_grad(),
    ):
        torch.manual_seed(seed)
        return _train(run, fixed.data, config, seed, on_epoch)


def _train(
    run: ModelRun,
    data: Graph,
    config: TrainingConfig,
    seed: int,
    on_epoch: Callable[[int, float], None] | None,
) -> TrainingResult:
    model = run.model
    epochs = _Epochs(run, data, _adam(run, config), seed)
    val_mask = run.task.part(data).val_mask
    validated = run.select(val_mask), run.task.targets(data)[val_mask]
    losses: list[float] = []
    with feature_sizes_explained(run):
        best_loss, best_accuracy = _validate(run, *validated)
    weights = copy_state(model)
    epochs_since_best = 0
    for epoch in range(1, config.epochs + 1):
        loss = epochs.train_one()
        losses.append(loss)
        if not math.isfinite(loss):
            break
        val_loss, val_accuracy = _validate(run, *validated)
        epochs_since_best += 1
        if val_loss < best_loss:
            best_loss, best_accuracy = val_loss, val_accuracy
            weights = copy_state(model)
            epochs_since_best = 0
        if on_epoch is not None:
            on_epoch(epoch, val_accuracy)
        if epochs_since_best >= config.patience:
            break
    restore_state(model, weights)
    model.eval()
    return TrainingResult(best_accuracy, len(losses), tuple(losses))


def _adam(run: ModelRun, config: TrainingConfig) -> torch.optim.Adam:
    model = run.model
    layer = _first_layer(model) if config.decayed_layers == "first" else model
    decayed = {id(parameter) for parameter in layer.parameters()}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[id(parameter) in decayed].append(parameter)
    # A step on a mini-batch is so short that Adam in single operations takes a seventh of it.
    is_short = run.in_batches and all(one.is_floating_point() for one in sum(groups.values(), []))
    return torch.optim.Adam(
        [
            {"params": groups[True], "weight_decay": config.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        fused=True if is_short else None,
    )


def _first_layer(model: nn.Module) -> nn.Module:
    """Return the first convolution, or part with parameters of its own; else the model."""
    for module in [*model.modules()][1:]:
        own = isinstance(module, MessagePassing) and any(True for _ in module.parameters())
        if own or next(module.parameters(recurse=False), None) is not None:
            return module
    return model


class _Epochs:
    """Epochs of a training; the order of its mini-batches is drawn for each one."""

    def __init__(
        self, run: ModelRun, data: Graph, optimizer: torch.optim.Optimizer, seed: int
    ) -> None:
        self._run, self._optimizer = run, optimizer
        targets = run.task.targets
        mask = run.task.part(data).train_mask
        self._batches = [
            (one, one.of(targets(one.part.data)))
            for one in Selection(run.parts.training, mask).chosen
        ]
        self._generator = torch.Generator().manual_seed(seed)

    def train_one(self) -> float:
        """Train for one epoch and return its loss, the mean over all items."""
        self._run.model.train()
        total, count = 0.0, 0
        for at in torch.randperm(len(self._batches), generator=self._generator).tolist():
            loss, targets = self._step(*self._batches[at]), self._batches[at][1]
            if len(self._batches) == 1:
                return loss
            total += loss * len(targets)
            count += len(targets)
            if not math.isfinite(loss):
                break
        return total / count

    def _step(self, chosen: Chosen, targets: Tensor) -> float:
        self._optimizer.zero_grad()
        outputs = chosen.of(self._run.outputs(chosen.part))
        loss = self._run.task.answers.loss(outputs, targets)
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())


def _validate(run: ModelRun, selection: Selection, targets: Tensor) -> tuple[float, float]:
    """Return loss and metric; a loss that is not finite counts as infinite."""
    task = run.task
    run.model.eval()
    with torch.no_grad():
        outputs = run.selected(selection)
        loss = float(task.answers.loss(outputs, targets))
    if math.isfinite(loss):
        return loss, task.metric(outputs, targets)
    with suppress(TaskError):
        return math.inf, task.metric(outputs, targets)
    return math.inf, math.nan


def accuracy(
    model: nn.Module,
    data: Graph | FixedGraph,
    mask: Tensor,
    *,
    forward: Forward = forward,
    task: Task = NODE_CLASSIFICATION,
) -> float:
    """Return the share of nodes that are classified correctly, in percent, or another metric.

    Args:
        model:
            Module that returns class scores, ``[N, C]``; it is set to evaluation mode.
        data:
            Graph with ``x``, ``edge_index`` and ``y`` (``[N]`` int64).
        mask:
            Nodes to classify, ``[N]`` bool; items of another task.
        forward:
            Function that calls the model with the graph; :func:`.columns` makes one.
        task:
            Items and metric; node classification by default.

    Raises:
        GraphError:
            If the graph lacks a column, or a node of the mask has no class.
        ModelError:
            If the model does not return a score of each class for each node, or takes another
            number of features.
        TaskError:
            If the metric is not a finite number.
        ValueError:
            If the mask is empty, or not of this type and shape.
    """
    if isinstance(data, FixedGraph):
        data.check(task.check_columns)
    else:
        task.check_columns(data)
    columns = data.data if isinstance(data, FixedGraph) else data
    targets = task.labels(columns, mask)
    with torch.no_grad(), model_run(model.eval(), data, forward, task) as run:
        with feature_sizes_explained(run):
            return task.metric(run.selected(run.select(mask)), targets)
