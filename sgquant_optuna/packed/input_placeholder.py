"""Stands for the graph's own features in a packed model, whose layers hold them packed.

What a model computes of the features alone (a normalisation, a cast) is not computed again: only
its shape and type are followed up to the layer that takes it, which holds its codes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map_only

from sgquant_optuna.exceptions import ModelError
from sgquant_optuna.graph.tensor_base import WrapperTensor

_MOVES = {Tensor.to, Tensor.cpu, Tensor.float, Tensor.double, Tensor.half, Tensor.type_as}
_SAME = {Tensor.contiguous, Tensor.detach, torch.detach}


class RawFeaturesError(ModelError):
    """Values of the graph's features are needed that the packed model does not hold.

    Args:
        where:
            Function or site that needs them.
        site:
            Name of the site, if one needs what was computed of the features alone.
        call:
            Number of the call of its layer.
    """

    def __init__(self, where: str, site: str | None = None, call: int = 0) -> None:
        super().__init__(
            f"packed model: the model uses the graph's features outside its quantized layers "
            f"(in {where}), but the file holds them only as those layers take them; let a "
            f"quantized layer take them, at 32 bits where they have to stay exact"
        )
        self.where, self.site, self.call = where, site, call


class InputPlaceholder(WrapperTensor):
    """The graph's own features, or what is computed of them alone, without values.

    Args:
        shape:
            Shape, ``[N, F]`` for the features themselves.
        dtype:
            Type of the values.
        constants:
            Identities (``id``) of buffers of the model and columns of the graph, which may be
            used to compute something of the features; parameters may be, too.
        is_input:
            Whether the values are those of the features.
    """

    constants: Collection[int]
    is_input: bool

    @staticmethod
    def __new__(
        cls,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        constants: Collection[int] = (),
        *,
        is_input: bool = True,
    ) -> InputPlaceholder:
        """Make a tensor without values."""
        self = cls._wrap(shape, dtype)
        self.constants, self.is_input = constants, is_input
        return self

    def dense(self) -> Tensor:
        """Refuse: there are no values."""
        raise RawFeaturesError("a compiled function")

    @classmethod
    def _compute(
        cls, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Follow shape and type; refuse what needs the values."""
        name = getattr(func, "__name__", str(func))
        if func is F.dropout:
            if kwargs.get("training", args[2] if len(args) > 2 else True):
                raise RawFeaturesError(name)
            return args[0]
        if func in _SAME:
            return args[0]
        if func in _MOVES and isinstance(args[0], InputPlaceholder):
            return _cast(func, *args, **kwargs)
        return _followed(func, name, args, kwargs)


def _cast(func: Callable[..., Any], x: InputPlaceholder, *args: Any, **kwargs: Any) -> Tensor:
    others = [arg.new_empty(0) if isinstance(arg, Tensor) else arg for arg in args]
    dtype = func(torch.empty(0, dtype=x.dtype), *others, **kwargs).dtype
    if dtype == x.dtype:
        return x
    return InputPlaceholder(x.shape, dtype, x.constants, is_input=False)


def _followed(
    func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Return placeholders of what a call gives, if all that it is given is known for ever."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    x = next(one for one in tensors if isinstance(one, InputPlaceholder))
    changes = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    if changes or not all(
        isinstance(one, InputPlaceholder | nn.Parameter) or id(one) in x.constants
        for one in tensors
    ):
        raise RawFeaturesError(name)
    try:
        with torch.no_grad():
            out = func(*tree_map_only(Tensor, _meta, args), **tree_map_only(Tensor, _meta, kwargs))
    except Exception as error:  # each function refuses tensors without values in its own way
        raise RawFeaturesError(name) from error
    return tree_map_only(
        Tensor,
        lambda one: InputPlaceholder(one.shape, one.dtype, x.constants, is_input=False),
        out,
    )


def _meta(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="meta")
