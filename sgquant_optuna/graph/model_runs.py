"""Calls of a model with the parts of a graph, one after another, in training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sgquant_optuna.exceptions import ModelError
from sgquant_optuna.graph.fixed_graph import FixedGraph, speed_up
from sgquant_optuna.graph.forward_pass import Forward
from sgquant_optuna.graph.mini_batches import Part, Parts, Selection, mini_batches, whole
from sgquant_optuna.graph.node_types import Graph, num_columns
from sgquant_optuna.graph.tasks.task import Task


@runtime_checkable
class BindsGraphs(Protocol):
    """A model that is told the graph that it is called with next, as one with quantizers is."""

    def binding_graphs(self) -> AbstractContextManager[Callable[[Graph], None]]:
        """Yield a function that binds a graph; afterwards the one before is bound again."""


class ModelRun:
    """A model that answers a task, called with one part of a graph after another.

    Args:
        model:
            Module to call.
        parts:
            Parts of the graph.
        call:
            Function that calls the model with a graph.
        task:
            Items of the graph, and kind of answers.
        use:
            Function that takes the graph whose cached matrices are used from now on.
        bind:
            Function that tells the model its next graph, or ``None``.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Parts,
        call: Forward,
        task: Task,
        use: Callable[[FixedGraph], Graph],
        bind: Callable[[Graph], None] | None,
    ) -> None:
        self.model, self.parts, self.task = model, parts, task
        self._call, self._use, self._bind = task.answering(call), use, bind
        self._fitting: dict[int, torch.Size] = {}

    @property
    def in_batches(self) -> bool:
        """Whether the graph is in mini-batches."""
        return any(part.items is not None for part in (*self.parts.training, *self.parts.others))

    def select(self, mask: Tensor) -> Selection:
        """Return where the items of a mask are, ``[I]`` bool."""
        return Selection((*self.parts.training, *self.parts.others), mask)

    def outputs(self, part: Part) -> Tensor:
        """Return the outputs for all items of a part.

        Raises:
            ModelError:
                If the model does not answer the task, or takes another number of features.
        """
        if part.fixed is not None:
            self._use(part.fixed)
        if self._bind is not None:
            self._bind(part.data)
        outputs = self._call(self.model, part.data)
        targets = self.task.targets(part.data)
        # Checked when the shape is new: looking at all targets takes a share of a short epoch.
        if isinstance(outputs, Tensor) and self._fitting.get(id(part.data)) == outputs.shape:
            return self.task.answers.shaped(outputs, targets)
        checked = self.task.check_outputs(self.model, outputs, targets)
        self._fitting[id(part.data)] = outputs.shape
        return checked

    def all_outputs(self) -> Tensor:
        """Return the outputs of all items, in their order."""
        parts = (*self.parts.training, *self.parts.others)
        items = [part.items for part in parts if part.items is not None]
        if not items:
            return self.outputs(parts[0])
        joined = torch.cat(items)
        return self.selected(self.select(torch.ones_like(joined, dtype=torch.bool)))

    def selected(self, selection: Selection) -> Tensor:
        """Return the outputs of the items of a mask, in their order."""
        return selection.gather(self.outputs)


@contextmanager
def model_run(
    model: nn.Module, data: Graph | FixedGraph, call: Forward, task: Task
) -> Iterator[ModelRun]:
    """Call a model with a graph in the parts that its task says.

    Args:
        model:
            Module to call; its convolutions run on cached matrices, unless the graph is plain and
            in one part.
        data:
            Graph.
        call:
            Function that calls the model with a graph.
        task:
            Items of the graph, kind of answers, and graphs of a mini-batch.

    Raises:
        GraphError:
            If the graph cannot be cut into mini-batches.
        ModelError:
            If the graph has another number of features than the model, for the first call.
    """
    size = task.batch_size_of(data.data if isinstance(data, FixedGraph) else data)
    with ExitStack() as stack:
        bind = None
        if size is None:
            parts = whole(data)
        else:
            data = data if isinstance(data, FixedGraph) else FixedGraph(data)
            parts = data.derived(mini_batches, size, task.target_column)
            if isinstance(model, BindsGraphs):
                bind = stack.enter_context(model.binding_graphs())
        if isinstance(data, FixedGraph):
            use = stack.enter_context(speed_up(model))
        else:
            use = _unused
        yield ModelRun(model, parts, call, task, use, bind)


def _unused(graph: FixedGraph) -> Graph:
    return graph.data


@contextmanager
def feature_sizes_explained(run: ModelRun) -> Iterator[None]:
    """Tell the sizes of a graph whose features do not fit the weights of the model."""
    try:
        yield
    except RuntimeError as error:
        if "shapes cannot be multiplied" not in str(error):
            raise
        features = num_columns((*run.parts.training, *run.parts.others)[0].data)
        raise ModelError(
            f"{type(run.model).__name__}: expected a model for the {features} "
            f"features of the graph, got one of other sizes ({str(error).splitlines()[0]}); make "
            f"it with as many in_channels, or take the graph that it was made for"
        ) from error
