"""The call of a model with quantizers: what begins and ends each forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch_geometric.data import Data

from sgquant_optuna.attachment.class_switch import derive_class
from sgquant_optuna.attachment.dropout import DropoutRecorder
from sgquant_optuna.attachment.graph_context import GraphContext
from sgquant_optuna.exceptions import ModelError, QuantizerBypassedError

CONTEXT = "graph_context"
"""Attribute of a model with quantizers: the state that they share."""


class QuantizedCall:
    """First base of the class of a model with quantizers.

    Hooks would not do: torch skips them after an interrupt from the keyboard, so that dropout
    would be recorded for ever.
    """

    training: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, record its dropout in training, and check that all sites were reached.

        Raises:
            GraphError:
                If the model is called with another graph than the bound one.
            QuantizerBypassedError:
                If the forward pass bypassed a quantizer.
        """
        graph = context_of(self)
        graph.check_call(args, kwargs)
        graph.used.clear()
        with DropoutRecorder() if self.training else nullcontext():  # otherwise there is none
            out = super().__call__(*args, **kwargs)  # type: ignore[misc]
        missed = [name for name in graph.expected if name not in graph.used]
        if missed:
            raise QuantizerBypassedError(
                f"the forward pass bypassed the quantizer of {', '.join(missed)}: the layer was "
                f"not called, or the model was compiled or scripted after attach(), or a fused "
                f"convolution does not call its own methods; leave the layer out with layers=, "
                f"or run the model eagerly"
            )
        return out

    @contextmanager
    def binding_graphs(self) -> Iterator[Callable[[Data], None]]:
        """Yield a function that binds a graph; afterwards the one before is bound again."""
        graph = context_of(self)
        before = graph.bound()
        try:
            yield graph.bind
        finally:
            graph.bind_again(before)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def with_quantized_call(base: type[nn.Module]) -> type[nn.Module]:
    """Return the class of a model of class ``base`` once it has quantizers."""
    if base not in _CLASSES:
        _CLASSES[base] = derive_class(with_quantized_call, base, QuantizedCall)
    return _CLASSES[base]


def context_of(model: object) -> GraphContext:
    """Return the state that all quantizers of a model share.

    Raises:
        ModelError:
            If the model has no quantizers.
    """
    graph = vars(model).get(CONTEXT)
    if not isinstance(graph, GraphContext):
        raise ModelError(
            f"expected a model with quantizers, got a plain {type(model).__name__}; "
            f"attach() them first"
        )
    return graph
