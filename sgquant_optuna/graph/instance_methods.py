"""A function in the place of a method of one module, for a while."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn


class InstanceMethod:
    """A function that stands in for a method of one module.

    Copies and pickles of the module, made meanwhile, have the method of their class.

    Args:
        owner:
            Module whose method it stands in for.
        name:
            Name of the method.
        function:
            Function that is called with the module and the arguments of the method.
    """

    def __init__(self, owner: nn.Module, name: str, function: Callable[..., Any]) -> None:
        self._owner, self._name, self._function = owner, name, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function(self._owner, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """Signature of the method, for those who ask a module for its parameters."""
        return inspect.signature(getattr(type(self._owner), self._name).__get__(self._owner))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return the method of the class, bound to the copy."""
        owner = copy.deepcopy(self._owner, memo)
        return getattr(type(owner), self._name).__get__(owner)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the method of the class."""
        return getattr, (self._owner, self._name)


def replace_method(
    owner: nn.Module, name: str, function: Callable[..., Any], undo: ExitStack
) -> None:
    """Let a function stand in for a method of one module until ``undo`` is closed."""
    if name in vars(owner):
        undo.callback(vars(owner).__setitem__, name, vars(owner)[name])
    else:
        undo.callback(vars(owner).pop, name, None)
    vars(owner)[name] = InstanceMethod(owner, name, function)


def has_own_method(owner: nn.Module, name: str) -> bool:
    """Whether a module has another method than its class has."""
    own = vars(owner).get(name)
    return own is not None and getattr(own, "__func__", None) is not getattr(type(owner), name)
