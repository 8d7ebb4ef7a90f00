"""Features stored at their bit width, and models that run on them block by block."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgquant_optuna.packed.export import export_packed, load_packed
    from sgquant_optuna.packed.feature_packing import pack_features
    from sgquant_optuna.packed.feature_store import PackedFeatureStore
    from sgquant_optuna.packed.mapped_features import MappedFeatures, load_features
    from sgquant_optuna.packed.operations import aggregate, linear
    from sgquant_optuna.packed.packed_features import PackedFeatures
    from sgquant_optuna.packed.packed_model import PackedModel
    from sgquant_optuna.packed.packed_tensor import PackedTensor

# Resolved at first use (PEP 562), as the names of the package itself.
_MODULE_OF = {
    "MappedFeatures": "mapped_features",
    "PackedFeatureStore": "feature_store",
    "PackedFeatures": "packed_features",
    "PackedModel": "packed_model",
    "PackedTensor": "packed_tensor",
    "aggregate": "operations",
    "export_packed": "export",
    "linear": "operations",
    "load_features": "mapped_features",
    "load_packed": "export",
    "pack_features": "feature_packing",
}

__all__ = [  # noqa: F822 - resolved by __getattr__
    "MappedFeatures",
    "PackedFeatureStore",
    "PackedFeatures",
    "PackedModel",
    "PackedTensor",
    "aggregate",
    "export_packed",
    "linear",
    "load_features",
    "load_packed",
    "pack_features",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
