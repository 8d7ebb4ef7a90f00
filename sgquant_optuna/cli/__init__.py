"""The command ``sgquant``."""

from sgquant_optuna.cli.app import main, run

__all__ = ["main", "run"]
