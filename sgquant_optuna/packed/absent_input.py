"""What a model is called with instead of features that its layers hold packed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sgquant_optuna.exceptions import ModelError

METADATA = {
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.is_floating_point,
    Tensor.__len__,
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_leaf")
    ),
    *(getattr(Tensor, name).__get__ for name in ("is_sparse", "is_cuda", "grad_fn", "_version")),
}
"""What a tensor tells without its values."""


class AbsentInput(Tensor):
    """Stands for the graph's own features ``[N, F]`` until a quantized layer takes them."""

    @staticmethod
    def __new__(cls, shape: tuple[int, int]) -> AbsentInput:
        """Make a tensor without values."""
        self = Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32)
        assert isinstance(self, AbsentInput)
        return self

    def __repr__(self) -> str:  # type: ignore[override]
        """Return the shape."""
        with torch._C.DisableTorchFunctionSubclass():
            return f"AbsentInput(shape={tuple(self.shape)})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Refuse everything that would need the values."""
        kwargs = kwargs or {}
        if func is F.dropout and not kwargs.get("training", args[2] if len(args) > 2 else True):
            return args[0]
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        raise ModelError(
            f"packed model: the model uses the graph's features outside its quantized layers "
            f"(in {name}), but the file holds them only as those layers take them; let a "
            f"quantized layer take them, at 32 bits where they have to stay exact"
        )

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Refuse everything."""
        raise ModelError(f"packed model: the graph's features are not there for {func}")
