"""Changing the class of a module in place, so that copies and pickles of it keep the new class."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import GraphModule

Derive = Callable[[type[nn.Module]], type[nn.Module]]
"""Module-level function from a class to its quantizing subclass, the same one for every call."""

_PLAIN = "_sgquant_plain_classes"


class Derived:
    """First base of a class that is made while the program runs, so that no import finds it."""

    _sgquant_recipe: tuple[type[nn.Module], tuple[Derive, ...]]
    """Importable class, and the functions that make this class from it."""

    def __deepcopy__(self, memo: dict[int, object]) -> object:
        """Copy by the recipe, where a base has another way: that of torch.fx loses attributes."""
        made = _rebuild(*type(self)._sgquant_recipe)
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle and copy by the recipe of the class and the state of the instance."""
        # Of the class, and by a name that no attribute of a model has.
        plain, steps = type(self)._sgquant_recipe
        if issubclass(plain, GraphModule):
            return _rebuild_traced, (_traced(plain, self.__dict__), steps)
        return _rebuild, (plain, steps), self.__getstate__()


def derive_class(
    derive: Derive, base: type[nn.Module], *bases: type, name: str | None = None
) -> type[nn.Module]:
    """Make a subclass whose instances can be copied and pickled.

    Args:
        derive:
            The calling function.
        base:
            Class to derive from.
        bases:
            Classes whose methods come before those of ``base``.
        name:
            Name of the new class; that of ``base`` if ``None``.
    """
    plain, steps = getattr(base, "_sgquant_recipe", (base, ()))
    members = {"_sgquant_recipe": (plain, (*steps, derive)), "__module__": base.__module__}
    derived: type[nn.Module] = type(name or base.__name__, (Derived, *bases, base), members)
    return derived


def switch_class(module: nn.Module, to: type[nn.Module]) -> None:
    """Change the class of ``module`` to its subclass ``to``, in place."""
    module.__dict__.setdefault(_PLAIN, []).append(type(module))
    module.__class__ = to


def restore_class(module: nn.Module) -> None:
    """Undo all calls of :func:`switch_class`; nothing happens if there were none."""
    plain = module.__dict__.pop(_PLAIN, [])
    if plain:
        module.__class__ = plain[0]


def _rebuild(plain: type[nn.Module], steps: tuple[Derive, ...]) -> nn.Module:
    for derive in steps:
        plain = derive(plain)
    made: nn.Module = nn.Module.__new__(plain)  # that of torch.fx would make another class
    return made


def _traced(plain: type[nn.Module], state: dict[str, Any]) -> GraphModule:
    """Return a module of torch.fx, as ``to_hetero`` makes, which knows how to pickle itself."""
    made: Any = nn.Module.__new__(plain)
    made.__dict__.update({name: value for name, value in state.items() if name != _PLAIN})
    traced: GraphModule = made
    return traced


def _rebuild_traced(made: GraphModule, steps: tuple[Derive, ...]) -> nn.Module:
    to: type[nn.Module] = type(made)
    for derive in steps:
        to = derive(to)
    switch_class(made, to)
    return made
