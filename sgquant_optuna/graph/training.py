"""The training loop of one graph, for full precision and for finetuning with quantizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from sgquant_optuna.exceptions import ModelError, TaskError
from sgquant_optuna.graph.fixed_graph import ONE_AT_A_TIME, FixedGraph
from sgquant_optuna.graph.forward_pass import Forward, forward
from sgquant_optuna.graph.model_copies import copy_state, restore_state
from sgquant_optuna.graph.node_types import Graph, num_columns
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
        fixed.speed_up(model) as graph,
        torch.enable_grad(),
    ):
        torch.manual_seed(seed)
        return _train(_Pass(model, graph, forward, task), config, on_epoch)


class _Pass(NamedTuple):
    """A model with the graph that it is called with, and the task that it answers."""

    model: nn.Module
    graph: Graph
    call: Forward
    task: Task

    @property
    def part(self) -> Any:
        """Columns of the graph that hold the masks."""
        return self.task.part(self.graph)

    def outputs(self) -> Tensor:
        """Return the outputs for all items."""
        outputs = self.call(self.model, self.graph)
        return self.task.check_outputs(self.model, outputs, self.task.targets(self.graph))


def _train(
    run: _Pass, config: TrainingConfig, on_epoch: Callable[[int, float], None] | None
) -> TrainingResult:
    model = run.model
    optimizer = _adam(model, config)
    losses: list[float] = []
    with _feature_sizes_explained(run):
        best_loss, best_accuracy = _validate(run)
    weights = copy_state(model)
    epochs_since_best = 0
    for epoch in range(1, config.epochs + 1):
        loss = _step(run, optimizer)
        losses.append(loss)
        if not math.isfinite(loss):
            break
        val_loss, val_accuracy = _validate(run)
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


def _adam(model: nn.Module, config: TrainingConfig) -> torch.optim.Adam:
    layer = _first_layer(model) if config.decayed_layers == "first" else model
    decayed = {id(parameter) for parameter in layer.parameters()}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[id(parameter) in decayed].append(parameter)
    return torch.optim.Adam(
        [
            {"params": groups[True], "weight_decay": config.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
    )


def _first_layer(model: nn.Module) -> nn.Module:
    """Return the first convolution, or part with parameters of its own; else the model."""
    for module in [*model.modules()][1:]:
        own = isinstance(module, MessagePassing) and any(True for _ in module.parameters())
        if own or next(module.parameters(recurse=False), None) is not None:
            return module
    return model


def _step(run: _Pass, optimizer: torch.optim.Optimizer) -> float:
    """Train for one full-batch epoch and return its loss."""
    mask, targets = run.part.train_mask, run.task.targets(run.graph)
    run.model.train()
    optimizer.zero_grad()
    loss = run.task.answers.loss(run.outputs()[mask], targets[mask])
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _validate(run: _Pass) -> tuple[float, float]:
    """Return loss and metric; a loss that is not finite counts as infinite."""
    mask, task = run.part.val_mask, run.task
    run.model.eval()
    with torch.no_grad():
        outputs = run.outputs()[mask]
        targets = task.targets(run.graph)[mask]
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
    speed_up = data.speed_up(model) if isinstance(data, FixedGraph) else nullcontext(data)
    with torch.no_grad(), speed_up as graph:
        targets = task.labels(graph, mask)
        run = _Pass(model.eval(), graph, forward, task)
        with _feature_sizes_explained(run):
            return task.metric(run.outputs()[mask], targets)


@contextmanager
def _feature_sizes_explained(run: _Pass) -> Iterator[None]:
    """Tell the sizes of a graph whose features do not fit the weights of the model."""
    try:
        yield
    except RuntimeError as error:
        if "shapes cannot be multiplied" not in str(error):
            raise
        raise ModelError(
            f"{type(run.model).__name__}: expected a model for the "
            f"{num_columns(run.graph)} features of the graph, got one of other sizes "
            f"({str(error).splitlines()[0]}); make "
            f"it with as many in_channels, or take the graph that it was made for"
        ) from error
