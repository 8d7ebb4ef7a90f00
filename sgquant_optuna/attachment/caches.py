"""Caches of convolutions: off while quantizers are attached, where they would hide a quantizer.

``SGConv(cached=True)`` propagates its input once and keeps the result, so that a quantizer at its
input has no effect from the second call on. ``GCNConv(cached=True)`` keeps normalised edges only,
which no quantizer touches; but they may be those of another graph.
"""

from __future__ import annotations

from torch import nn

_SWITCH = "cached"
_PREFIX = "_cached_"
_OF_EDGES = ("edge", "adj")
_WAS_ON = "cached_before_attach"


def suspend_caches(model: nn.Module) -> None:
    """Empty every cache of the convolutions, and turn caches of features off, in place."""
    for module in model.modules():
        state = [name for name in vars(module) if name.startswith(_PREFIX)]
        for name in state:
            setattr(module, name, None)
        holds_features = any(
            not name.removeprefix(_PREFIX).startswith(_OF_EDGES) for name in state
        )
        if holds_features and getattr(module, _SWITCH, False) is True:
            setattr(module, _SWITCH, False)
            module.__dict__[_WAS_ON] = True


def restore_caches(model: nn.Module) -> None:
    """Turn the caches that :func:`suspend_caches` turned off on again, empty, in place."""
    for module in model.modules():
        if module.__dict__.pop(_WAS_ON, False):
            setattr(module, _SWITCH, True)
