"""Keeps the log of Optuna and warnings that a user cannot act on out of the terminal."""

from __future__ import annotations

import warnings

import optuna


def quiet_optuna() -> None:
    """Let the progress bar tell what Optuna would log for each trial."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
