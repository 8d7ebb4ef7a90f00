"""Copies of models that ``copy.deepcopy`` refuses: old ``weight_norm``, lazy layers not called."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer


def copy_model(model: nn.Module) -> nn.Module:
    """Return a deep copy; a tensor that was computed with gradients is copied as a plain value.

    ``torch.nn.utils.weight_norm`` keeps such a weight as an attribute, and computes it anew in
    each forward pass.

    Args:
        model:
            Model to copy; it stays as it is.
    """
    memo: dict[int, Tensor] = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and value.grad_fn is not None
    }
    for module in model.modules():
        for buffer in module._buffers.values():
            if isinstance(buffer, UninitializedBuffer):
                with torch.device(buffer.device):
                    memo[id(buffer)] = UninitializedBuffer()
    return copy.deepcopy(model, dict(memo))
