"""Tells, of a tensor that was just dropped out, what it was before and which mask was drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sgquant_optuna.graph.sparse_features import SparseFeatures

Mask = Callable[[Tensor], Tensor]
_RECORD = "_sgquant_before_dropout"


class DropoutRecorder(TorchFunctionMode):
    """While entered, ``F.dropout`` leaves on its result the input and the mask.

    The random numbers and the result are those of the plain function, bit by bit.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Record dropout; let everything else pass."""
        kwargs = kwargs or {}
        if func is F.dropout:
            return _recorded_dropout(*args, **kwargs)
        return func(*args, **kwargs)


def before_dropout(x: Tensor) -> tuple[Tensor, Mask | None]:
    """Return what ``x`` was before dropout and the mask to apply again, or ``(x, None)``."""
    record: tuple[Tensor, Mask] | None = getattr(x, _RECORD, None)
    return record if record is not None else (x, None)


def _recorded_dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if not training or p == 0 or inplace:  # in place, the input is gone afterwards
        return F.dropout(input, p, training, inplace)
    mask: Mask
    if isinstance(input, SparseFeatures):
        factors = F.dropout(torch.ones_like(input.non_zeros), p)

        def mask(x: Tensor) -> Tensor:
            if isinstance(x, SparseFeatures):
                return x.with_non_zeros(x.non_zeros * factors)
            # Zero became another value: drop those places too, or they would leak.
            return F.dropout(x, p)
    else:
        factors = F.dropout(torch.ones_like(input), p)

        def mask(x: Tensor) -> Tensor:
            return x * factors

    dropped = mask(input)
    setattr(dropped, _RECORD, (input, mask))
    return dropped
