"""Copies of models, also of those that hold a result of their last training step."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Model = TypeVar("Model", bound=nn.Module)


def copy_model(model: Model) -> Model:
    """Return a deep copy of a model.

    ``copy.deepcopy`` refuses a tensor with a history of gradients. ``SuperGATConv`` keeps such a
    tensor from its last forward pass; the copy gets its values without the history.
    """
    kept = [value for module in model.modules() for value in tree_leaves(_state(module))]
    results = {
        id(one): one.detach() for one in kept if isinstance(one, Tensor) and not one.is_leaf
    }
    return copy.deepcopy(model, results)


def _state(module: nn.Module) -> dict[str, object]:
    return {name: value for name, value in vars(module).items() if name != "_modules"}
