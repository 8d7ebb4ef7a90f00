"""Study databases: a URL or a file becomes an Optuna storage, or an error in one line."""

from sgquant_optuna.storage.batching import write_together
from sgquant_optuna.storage.heartbeat import heartbeats_from_creation
from sgquant_optuna.storage.opening import open_storage
from sgquant_optuna.storage.retries import RETRY_SECONDS, outage
from sgquant_optuna.storage.serving import serve_storage
from sgquant_optuna.storage.urls import DEFAULT_FILE, STORAGE_VARIABLE

__all__ = [
    "DEFAULT_FILE",
    "RETRY_SECONDS",
    "STORAGE_VARIABLE",
    "heartbeats_from_creation",
    "open_storage",
    "outage",
    "serve_storage",
    "write_together",
]
