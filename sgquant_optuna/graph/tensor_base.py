"""The base of tensors that hold their values in another form than a dense array."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

_METADATA = {
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
"""Calls that need no values."""


class WrapperTensor(Tensor):
    """A tensor to every model, whose values are held in another form than a dense array.

    It has shape, type and device, takes no gradient and is never written to, so copies share it.

    A derived class

    * makes an instance in its ``__new__`` by :meth:`_wrap`, and sets its own attributes on it,
    * defines :meth:`dense`,
    * overrides :meth:`_compute` for the calls that its form can answer itself. Any other call gets
      the dense tensor,
    * may override :meth:`extra_repr`.
    """

    @classmethod
    def _wrap(
        cls,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Self:
        """Make a tensor without values."""
        self = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        assert isinstance(self, cls)
        return self

    def dense(self) -> Tensor:
        """Return the values as an ordinary tensor."""
        raise NotImplementedError

    @classmethod
    def _compute(
        cls, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Answer a call from the form itself; ``NotImplemented`` asks for dense values."""
        return NotImplemented

    def extra_repr(self) -> str:
        """Return what the readable form says beside the shape."""
        return ""

    def __repr__(self) -> str:  # type: ignore[override]
        """Return the readable form: class, shape and :meth:`extra_repr`."""
        parts = [f"shape={tuple(self.shape)}", self.extra_repr()]
        return f"{type(self).__name__}({', '.join(filter(None, parts))})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the tensor itself: nothing writes to it, so copies of models may share it."""
        return self

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Answer from the metadata or the form where that is possible, else from dense values."""
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        found = cls._compute(func, args, kwargs)
        return cls._call_dense(func, args, kwargs) if found is NotImplemented else found

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Give dense values to operations that come from below Python."""
        return cls._call_dense(func, args, kwargs or {})

    @classmethod
    def _call_dense(
        cls, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        args, kwargs = tree_map_only(cls, cls.dense, (args, kwargs))
        return func(*args, **kwargs)
