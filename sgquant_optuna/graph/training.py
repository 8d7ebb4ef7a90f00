"""The training loop of one graph, for full precision and for finetuning with quantizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing

from sgquant_optuna.exceptions import GraphError, ModelError
from sgquant_optuna.graph.datasets import check_columns
from sgquant_optuna.graph.fixed_graph import ONE_AT_A_TIME, FixedGraph
from sgquant_optuna.graph.forward_pass import Forward, check_scores, forward
from sgquant_optuna.graph.model_copies import copy_state, restore_state
from sgquant_optuna.graph.training_config import TrainingConfig


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training.

    Args:
        accuracy:
            Accuracy on the validation nodes at the lowest validation loss, in percent; the model
            has the weights of that epoch.
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
    data: Data | FixedGraph,
    config: TrainingConfig | None = None,
    *,
    seed: int = 0,
    forward: Forward = forward,
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
            Module that returns class scores, ``[N, C]``.
        data:
            Graph with ``x``, ``edge_index``, ``y`` (``[N]`` int64), ``train_mask`` and
            ``val_mask`` (``[N]`` bool).
        config:
            Epochs, learning rate, weight decay, patience; by default ``TrainingConfig()``.
        seed:
            Seed of dropout. The global random state is restored, after an exception too.
        forward:
            Function that calls the model with the graph; :func:`.columns` makes one.
        on_epoch:
            Function of epoch and validation accuracy in percent, called after each epoch; it may
            raise an exception to stop the training.

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
    fixed.check()
    y = fixed.data.y
    assert isinstance(y, Tensor)
    num_classes = 1 + int(y[fixed.data.train_mask | fixed.data.val_mask].max())
    devices = [y.device] if y.is_cuda else []
    with (
        ONE_AT_A_TIME,
        torch.random.fork_rng(devices),
        fixed.speed_up(model) as graph,
        torch.enable_grad(),
    ):
        torch.manual_seed(seed)
        return _train(_Task(model, graph, forward, num_classes), config, on_epoch)


class _Task(NamedTuple):
    model: nn.Module
    graph: Data
    call: Forward
    num_classes: int

    def scores(self) -> Tensor:
        """Return class scores, ``[N, C]``."""
        scores = self.call(self.model, self.graph)
        return check_scores(self.model, scores, len(self.graph.y), self.num_classes)


def _train(
    task: _Task, config: TrainingConfig, on_epoch: Callable[[int, float], None] | None
) -> TrainingResult:
    model = task.model
    optimizer = _adam(model, config)
    losses: list[float] = []
    with _feature_sizes_explained(task):
        best_loss, best_accuracy = _validate(task)
    weights = copy_state(model)
    epochs_since_best = 0
    for epoch in range(1, config.epochs + 1):
        loss = _step(task, optimizer)
        losses.append(loss)
        if not math.isfinite(loss):
            break
        val_loss, val_accuracy = _validate(task)
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


def _step(task: _Task, optimizer: torch.optim.Optimizer) -> float:
    """Train for one full-batch epoch and return its loss."""
    data = task.graph
    task.model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(task.scores()[data.train_mask], data.y[data.train_mask])
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _validate(task: _Task) -> tuple[float, float]:
    """Return loss and accuracy in percent; a loss that is not finite counts as infinite."""
    data = task.graph
    task.model.eval()
    with torch.no_grad():
        scores = task.scores()[data.val_mask]
    labels = data.y[data.val_mask]
    loss = float(F.cross_entropy(scores, labels))
    return loss if math.isfinite(loss) else math.inf, _percent(scores, labels)


def accuracy(
    model: nn.Module,
    data: Data | FixedGraph,
    mask: Tensor,
    *,
    forward: Forward = forward,
) -> float:
    """Return the share of nodes that are classified correctly, in percent.

    Args:
        model:
            Module that returns class scores, ``[N, C]``; it is set to evaluation mode.
        data:
            Graph with ``x``, ``edge_index`` and ``y`` (``[N]`` int64).
        mask:
            Nodes to classify, ``[N]`` bool.
        forward:
            Function that calls the model with the graph; :func:`.columns` makes one.

    Raises:
        GraphError:
            If the graph lacks a column, or a node of the mask has no class.
        ModelError:
            If the model does not return a score of each class for each node, or takes another
            number of features.
        ValueError:
            If the mask is empty, or not of this type and shape.
    """
    if isinstance(data, FixedGraph):
        data.check(check_columns)
    else:
        check_columns(data)
    speed_up = data.speed_up(model) if isinstance(data, FixedGraph) else nullcontext(data)
    with torch.no_grad(), speed_up as graph:
        labels = _labels(graph.y, mask)
        task = _Task(model.eval(), graph, forward, 1 + int(labels.max()))
        with _feature_sizes_explained(task):
            return _percent(task.scores()[mask], labels)


def _labels(y: Tensor, mask: Tensor) -> Tensor:
    """Return the labels of the nodes of a mask, all of them classes."""
    if mask.dtype != torch.bool or mask.shape != y.shape:
        hint = "; choose one of its splits, as in mask[:, 0]" if mask.dim() == 2 else ""
        raise ValueError(
            f"accuracy: expected a mask bool [{len(y)}], got "
            f"{str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}{hint}"
        )
    if not mask.any():
        raise ValueError("accuracy: expected a mask with at least one node, got an empty one")
    labels = y[mask]
    if int(labels.min()) < 0:
        raise GraphError("column y: expected a class for each node of the mask, got -1")
    return labels


@contextmanager
def _feature_sizes_explained(task: _Task) -> Iterator[None]:
    """Tell the sizes of a graph whose features do not fit the weights of the model."""
    try:
        yield
    except RuntimeError as error:
        if "shapes cannot be multiplied" not in str(error):
            raise
        raise ModelError(
            f"{type(task.model).__name__}: expected a model for the {task.graph.x.shape[1]} "
            f"features of the graph, got one of other sizes ({str(error).splitlines()[0]}); make "
            f"it with as many in_channels, or take the graph that it was made for"
        ) from error


def _percent(scores: Tensor, labels: Tensor) -> float:
    return 100.0 * float((scores.argmax(dim=1) == labels).double().mean())
