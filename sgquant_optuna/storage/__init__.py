"""One door to study databases: a URL or a file becomes an Optuna storage, or a clear error."""

from sgquant_optuna.storage.batching import write_together
from sgquant_optuna.storage.heartbeat import every_trial_beats
from sgquant_optuna.storage.opening import open_storage
from sgquant_optuna.storage.retries import PATIENCE, outage
from sgquant_optuna.storage.serving import serve_storage
from sgquant_optuna.storage.urls import DEFAULT_FILE, STORAGE_VARIABLE

__all__ = [
    "DEFAULT_FILE",
    "PATIENCE",
    "STORAGE_VARIABLE",
    "every_trial_beats",
    "open_storage",
    "outage",
    "serve_storage",
    "write_together",
]
