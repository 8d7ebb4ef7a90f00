"""The command ``sgquant``."""

from sgquant_optuna.cli.app import main

__all__ = ["main"]
