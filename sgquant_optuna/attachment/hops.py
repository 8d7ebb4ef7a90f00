"""Hidden features between the hops of one convolution, which are stored as its input is.

``APPNP``, ``TAGConv``, ``SGConv``, ``ChebConv`` and others call ``propagate`` several times in one
forward pass, each time with what the last one gave. One pass with gradients tells these calls from
independent ones (``RGCNConv`` propagates its input once for each relation): the features of a hop
depend on the result of an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import GatedGraphConv, MessagePassing

from sgquant_optuna.attachment.graph_context import GraphContext
from sgquant_optuna.attachment.layer_arguments import change_argument
from sgquant_optuna.attachment.site_quantizer import SiteQuantizer
from sgquant_optuna.quantization.quantizer_config import QuantizerConfig
from sgquant_optuna.quantization.quantizers import FeatureQuantizer

HOPS = "hop_quantizer"
"""Submodule of a convolution: the quantizer of all its hidden features between hops."""

_PORTS = "hop_ports"
_CALLS = "hop_calls"

Port = tuple[int, str]
"""Number of a call of ``propagate``, and the argument that is quantized; ``""`` for its result."""


def hop_quantizer(path: str, config: QuantizerConfig, graph: GraphContext) -> SiteQuantizer:
    """Make the quantizer of the hidden features of a convolution, site ``path.hops/embedding``."""
    return SiteQuantizer(FeatureQuantizer(hop_site(path), config), graph)


def hop_site(path: str) -> str:
    """Return the name of the site of the hidden features between the hops of a convolution."""
    return f"{path}.hops/embedding"


class QuantizedGatedGraphConv(GatedGraphConv):
    """:class:`~torch_geometric.nn.GatedGraphConv` with quantized states between its layers.

    Reference:
        Li et al., "Gated Graph Sequence Neural Networks", 2016.
    """

    def forward(self, x: Tensor, edge_index: Any, edge_weight: Tensor | None = None) -> Tensor:
        """Run the plain class layer by layer, with the state quantized between two of them."""
        if x.size(-1) > self.out_channels:
            x = super().forward(x, edge_index, edge_weight)  # raises the error of the plain class
        x = torch.nn.functional.pad(x, (0, self.out_channels - x.size(-1)))
        quantizer = self.get_submodule(HOPS)
        for layer in range(self.num_layers):
            if layer > 0:
                x = quantizer(x, self.node_dim)
            m = torch.matmul(x, self.weight[layer])
            m = self.propagate(edge_index, x=m, edge_weight=edge_weight)
            x = self.rnn(m, x)
        return x


def with_states(conv: nn.Module) -> type[nn.Module] | None:
    """Return the class that quantizes the states of a recurrent convolution, if there is one."""
    if isinstance(conv, GatedGraphConv) and type(conv) is GatedGraphConv and conv.num_layers > 1:
        return QuantizedGatedGraphConv
    return None


@dataclass
class HopTrace:
    """Calls of ``propagate`` of one convolution within one of its forward passes.

    Args:
        conv:
            The convolution.
    """

    conv: MessagePassing
    results: list[Tensor] = field(default_factory=list)
    """Results of the calls of the current forward pass."""
    most_calls: int = 0
    ports: dict[Port, None] = field(default_factory=dict)
    """Where hidden features pass, in the order of the calls."""

    def start(self, *_: Any) -> None:
        """Begin a forward pass of the convolution; a forward pre-hook."""
        self.results = []

    def before(self, conv: Any, inputs: tuple[Any, ...]) -> None:
        """Look where the features of a call come from; a propagate pre-hook."""
        number, kwargs = len(self.results), inputs[-1]
        self.most_calls = max(self.most_calls, number + 1)
        for argument, value in kwargs.items():
            for x in value if isinstance(value, tuple) else (value,):
                if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
                    continue
                same = [index for index, out in enumerate(self.results) if out is x]
                if same:
                    self.ports[(same[-1], "")] = None
                elif x.requires_grad and _depends(x, self.results):
                    self.ports[(number, argument)] = None

    def after(self, conv: Any, inputs: tuple[Any, ...], out: Any) -> Any:
        """Keep the result of a call, as one that gradients are traced to; a propagate hook."""
        if torch.is_grad_enabled() and isinstance(out, Tensor) and out.is_floating_point():
            out = out.detach().requires_grad_()
        self.results.append(out)
        return out


def _depends(x: Tensor, results: list[Tensor]) -> bool:
    """Whether gradients of ``x`` reach one of the results, which are leaves of the graph."""
    leaves = {id(one) for one in results}
    todo, seen = [x.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) in leaves:
            return True
        todo += [parent for parent, _ in node.next_functions]
    return False


@contextmanager
def traced(convs: list[MessagePassing]) -> Iterator[list[HopTrace]]:
    """Trace the calls of ``propagate`` of convolutions within the block."""
    traces = [HopTrace(conv) for conv in convs]
    handles: list[Any] = []
    try:
        for trace in traces:
            handles += [
                trace.conv.register_forward_pre_hook(trace.start),
                trace.conv.register_propagate_forward_pre_hook(trace.before),
                trace.conv.register_propagate_forward_hook(trace.after),
            ]
        yield traces
    finally:
        for handle in handles:
            handle.remove()
        for trace in traces:
            trace.results = []


def install_hops(conv: MessagePassing, quantizer: nn.Module, ports: list[Port]) -> None:
    """Put a quantizer onto the hidden features of a convolution, in place.

    Args:
        conv:
            Convolution with hops.
        quantizer:
            Module with the ``name`` of its site, called with features and their node dimension.
        ports:
            Places of the hidden features.
    """
    conv.add_module(HOPS, quantizer)
    conv.__dict__[_PORTS], conv.__dict__[_CALLS] = frozenset(ports), 0
    conv.register_forward_pre_hook(_start_hops)
    conv.register_propagate_forward_pre_hook(_quantize_hop)
    conv.register_propagate_forward_hook(_quantize_result)


def hop_ports(conv: nn.Module) -> list[Port]:
    """Return where hidden features of a calibrated convolution are quantized, in order."""
    return sorted(conv.__dict__.get(_PORTS, ()))


def remove_hops(conv: nn.Module) -> None:
    """Undo :func:`install_hops`; nothing happens if there are none."""
    if conv.__dict__.pop(_PORTS, None) is None:
        return
    conv.__dict__.pop(_CALLS)
    conv._modules.pop(HOPS)
    for hooks, function in (
        (conv._forward_pre_hooks, _start_hops),
        (conv._propagate_forward_pre_hooks, _quantize_hop),
        (conv._propagate_forward_hooks, _quantize_result),
    ):
        remove_hook(hooks, function)  # type: ignore[arg-type]


def remove_hook(hooks: dict[int, Any], function: Any) -> None:
    """Remove a function from hooks; handles would remove it from the first model, not copies."""
    for key in [key for key, hook in hooks.items() if hook is function]:
        del hooks[key]


def _start_hops(conv: nn.Module, args: tuple[Any, ...]) -> None:
    conv.__dict__[_CALLS] = 0


def _quantize_hop(conv: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    number, (edge_index, size, kwargs) = conv.__dict__[_CALLS], inputs
    arguments = [name for name in kwargs if (number, name) in conv.__dict__[_PORTS]]
    if not arguments:
        return None
    quantizer = conv.get_submodule(HOPS)
    for name in arguments:
        _, kwargs = change_argument(
            str(quantizer.name), (), kwargs, name, 0, lambda x: quantizer(x, conv.node_dim)
        )
    return edge_index, size, kwargs


def _quantize_result(conv: nn.Module, inputs: tuple[Any, ...], out: Any) -> Any:
    number = conv.__dict__[_CALLS]
    conv.__dict__[_CALLS] = number + 1
    if (number, "") not in conv.__dict__[_PORTS]:
        return None
    return conv.get_submodule(HOPS)(out, conv.node_dim)
