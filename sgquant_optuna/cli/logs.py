"""What a worker says: one line an event on the standard error, with study and worker."""

from __future__ import annotations

import logging
import sys
from enum import StrEnum

from sgquant_optuna.worker_name import worker_name


class LogLevel(StrEnum):
    """How much is told."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def start_logging(study: str, level: LogLevel) -> None:
    """Write the log of this package to the standard error.

    Args:
        study:
            Name of the study, shown on each line.
        level:
            The least important lines that are shown.
    """
    handler = logging.StreamHandler(sys.stderr)
    shown = study.replace("%", "%%")
    text = f"%(asctime)s {shown} {worker_name()} %(levelname)s %(message)s"
    handler.setFormatter(logging.Formatter(text, datefmt="%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger("sgquant_optuna")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.value.upper())
