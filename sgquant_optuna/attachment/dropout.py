"""Recording of dropout: the input and the mask of a tensor that dropout has just returned."""

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
    """Context in which ``F.dropout`` attaches its input and its mask to its result.

    The random numbers and the result are bit-identical to those of the plain function.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Record calls of dropout, and call every other function unchanged."""
        kwargs = kwargs or {}
        if func is F.dropout:
            return _recorded_dropout(*args, **kwargs)
        return func(*args, **kwargs)


def before_dropout(x: Tensor) -> tuple[Tensor, Mask | None]:
    """Return the tensor before dropout, and the function that applies the same mask again.

    Args:
        x:
            Features, ``[N, F]``.

    Returns:
        Features before dropout, ``[N, F]``, and the mask; ``(x, None)`` if ``x`` is not a
        recorded result of dropout.
    """
    record: tuple[Tensor, Mask] | None = getattr(x, _RECORD, None)
    return record if record is not None else (x, None)


def _recorded_dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if not training or p == 0 or inplace:  # an in-place call overwrites its input
        return F.dropout(input, p, training, inplace)
    mask: Mask
    if isinstance(input, SparseFeatures):
        factors = F.dropout(torch.ones_like(input.non_zeros), p)

        def mask(x: Tensor) -> Tensor:
            if isinstance(x, SparseFeatures):
                return x.with_non_zeros(x.non_zeros * factors)
            # Zeros became another value, so their positions need dropout too.
            return F.dropout(x, p)
    else:
        factors = F.dropout(torch.ones_like(input), p)

        def mask(x: Tensor) -> Tensor:
            return x * factors

    dropped = mask(input)
    setattr(dropped, _RECORD, (input, mask))
    return dropped
