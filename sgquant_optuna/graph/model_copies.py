"""Copies of models and of their state, where those of torch fail.

``copy.deepcopy`` refuses ``torch.nn.utils.weight_norm`` and lazy layers that were not called. The
``state_dict`` of PyG's ``Linear`` has the weight that ``weight_norm`` makes of two parameters, but
not these, so it cannot be loaded again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, is_lazy
from torch.utils._pytree import tree_leaves

Model = TypeVar("Model", bound=nn.Module)


def copy_model(model: Model) -> Model:
    """Return a deep copy; a tensor that was computed with gradients is copied as a plain value.

    ``torch.nn.utils.weight_norm`` keeps such a weight as an attribute, and computes it anew in
    each forward pass. ``SuperGATConv`` keeps a result of its last one.

    Args:
        model:
            Model to copy; it stays as it is.
    """
    kept = [value for module in model.modules() for value in tree_leaves(_own_state(module))]
    memo: dict[int, Tensor] = {
        id(value): value.detach().clone()
        for value in kept
        if isinstance(value, Tensor) and not value.is_leaf
    }
    for module in model.modules():
        for buffer in module._buffers.values():
            if isinstance(buffer, UninitializedBuffer):
                with torch.device(buffer.device):
                    memo[id(buffer)] = UninitializedBuffer()
    return copy.deepcopy(model, dict(memo))


def _own_state(module: nn.Module) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if name != "_modules"}


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by all their names, without a copy."""
    state: dict[str, Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, value in {**module._parameters, **module._buffers}.items():
            if value is not None and name not in module._non_persistent_buffers_set:
                state[f"{prefix}{name}"] = value if is_lazy(value) else value.detach()
    return state


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of parameters and persistent buffers by name, for :func:`restore_state`."""
    return {name: value.clone() for name, value in named_state(model).items()}


def restore_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a model the state that it had when it was copied, in place."""
    with torch.no_grad():
        for name, value in named_state(model).items():
            value.copy_(state[name])
