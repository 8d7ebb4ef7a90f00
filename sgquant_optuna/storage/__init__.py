"""Study databases: a URL or a file becomes an Optuna storage, or an error in one line."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgquant_optuna.storage.batching import write_together
    from sgquant_optuna.storage.heartbeat import heartbeats_from_creation
    from sgquant_optuna.storage.opening import open_storage
    from sgquant_optuna.storage.retries import RETRY_SECONDS, may_pass, outage
    from sgquant_optuna.storage.serving import serve_storage
    from sgquant_optuna.storage.urls import DEFAULT_FILE, STORAGE_VARIABLE

# Resolved at first use (PEP 562), so that the keys of attributes are imported without a database.
_MODULE_OF = {
    "DEFAULT_FILE": "urls",
    "RETRY_SECONDS": "retries",
    "STORAGE_VARIABLE": "urls",
    "heartbeats_from_creation": "heartbeat",
    "may_pass": "retries",
    "open_storage": "opening",
    "outage": "retries",
    "serve_storage": "serving",
    "write_together": "batching",
}

__all__ = [  # noqa: F822 - resolved by __getattr__
    "DEFAULT_FILE",
    "RETRY_SECONDS",
    "STORAGE_VARIABLE",
    "heartbeats_from_creation",
    "may_pass",
    "open_storage",
    "outage",
    "serve_storage",
    "write_together",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
