"""Features and attention that no output depends on, which are neither quantized nor counted.

The last layer of a heterogeneous model gives outputs of all node types, and a task is of one. What
the others are computed of alone need not be stored. NaN in the place of what a layer returns shows
it: no output becomes NaN. A layer that hides its input from the outputs, by a cache, is not taken
for such: what it returns counts, not what it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from sgquant_optuna.attachment.layer_arguments import change_argument, part_of
from sgquant_optuna.attachment.layer_inputs import layer_quantizers
from sgquant_optuna.attachment.quantized_call import context_of
from sgquant_optuna.attachment.quantized_model import ATTENTION, leave_out, leave_out_attention
from sgquant_optuna.attachment.site_quantizer import SiteQuantizer
from sgquant_optuna.attachment.typed_inputs import ARGUMENTS, FEATURES, UNUSED


def leave_out_unused(model: nn.Module, outputs: Callable[[], Any]) -> list[str]:
    """Remove the quantizers of features and attention that no output depends on, and note it.

    Args:
        model:
            Model with quantizers that have observed a heterogeneous graph.
        outputs:
            Function that calls the model.

    Returns:
        Names of the sites that were left out.
    """
    graph = context_of(model)
    graph.expected = ()  # not all layers are what they were
    uses: dict[str, list[tuple[str, str]]] = {}
    for path, argument, quantizer in layer_quantizers(model):
        uses.setdefault(quantizer.name, []).append((path, argument))
    reached: dict[tuple[str, str | None], bool] = {}
    unused = []
    for name, places in uses.items():
        keys = [(path, argument if _is_by_key(argument) else None) for path, argument in places]
        for key in keys:
            if key not in reached:
                reached[key] = _reaches(model, *key, outputs)
        if not any(reached[key] for key in keys):
            unused.append(name)
            for path, argument in places:
                _leave_out_argument(model.get_submodule(path), argument)
    for path, conv in list(model.named_modules()):
        quantizer = conv._modules.get(ATTENTION)
        if not isinstance(quantizer, SiteQuantizer):
            continue
        if (path, None) not in reached:
            reached[path, None] = _reaches(model, path, None, outputs)
        if not reached[path, None]:
            unused.append(quantizer.name)
            leave_out_attention(conv)
    for name in unused:
        subject = name.removesuffix("/embedding")
        graph.note(f"{subject}: not quantized and not counted, because no output depends on it")
    return unused


def _is_by_key(argument: str) -> bool:
    return part_of(argument) not in (None, "0", "1")


def _reaches(
    model: nn.Module, path: str, argument: str | None, outputs: Callable[[], Any]
) -> bool:
    """Whether an output depends on what a layer returns, or on one type of what it takes."""
    layer = model.get_submodule(path)
    if argument is None:
        handle: Any = layer.register_forward_hook(lambda *call: _nan(call[2]))
    else:
        position, _ = layer.__dict__[ARGUMENTS][argument]

        def taint(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return change_argument(path, args, kwargs, argument, position, _nan)

        handle = layer.register_forward_pre_hook(taint, with_kwargs=True)
    try:
        with torch.no_grad():
            found = outputs()
    finally:
        handle.remove()
    values = [one for one in tree_leaves(found) if isinstance(one, Tensor)]
    return any(bool(one.isnan().any()) for one in values)


def _nan(value: Any) -> Any:
    return tree_map_only(
        Tensor, lambda x: torch.full_like(x, torch.nan) if x.is_floating_point() else x, value
    )


def _leave_out_argument(layer: nn.Module, argument: str) -> None:
    arguments: dict[str, tuple[int, str]] = layer.__dict__[ARGUMENTS]
    _, name = arguments.pop(argument)
    layer._modules.pop(name)
    if arguments:
        _, first = next(iter(arguments.values()))
        layer._modules[FEATURES] = layer._modules[first]
    else:
        leave_out(layer)
    layer.__dict__.setdefault(UNUSED, []).append(argument)
