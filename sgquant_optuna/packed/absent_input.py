"""What a model is called with instead of features that its layers hold packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from sgquant_optuna.exceptions import ModelError
from sgquant_optuna.graph.tensor_base import WrapperTensor


class AbsentInput(WrapperTensor):
    """Stands for the graph's own features ``[N, F]`` until a quantized layer takes them."""

    @staticmethod
    def __new__(cls, shape: tuple[int, int]) -> AbsentInput:
        """Make a tensor without values."""
        return cls._wrap(shape)

    def dense(self) -> Tensor:
        """Refuse: there are no values."""
        raise ModelError("packed model: the graph's features are not there")

    @classmethod
    def _compute(
        cls, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Refuse everything that would need the values."""
        if func is F.dropout and not kwargs.get("training", args[2] if len(args) > 2 else True):
            return args[0]
        name = getattr(func, "__name__", str(func))
        raise ModelError(
            f"packed model: the model uses the graph's features outside its quantized layers "
            f"(in {name}), but the file holds them only as those layers take them; let a "
            f"quantized layer take them, at 32 bits where they have to stay exact"
        )
