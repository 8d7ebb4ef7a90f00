"""What a command logs: a worker one line an event, the others nothing of Optuna's."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum


class LogLevel(StrEnum):
    """Least important lines that are written."""

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
    from sgquant_optuna.storage.processes import process_name

    handler = logging.StreamHandler(sys.stderr)
    shown = study.replace("%", "%%")
    text = f"%(asctime)s {shown} {process_name()} %(levelname)s %(message)s"
    handler.setFormatter(logging.Formatter(text, datefmt="%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger("sgquant_optuna")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.value.upper())


@contextmanager
def short_warnings() -> Iterator[None]:
    """Write each warning as one line, without the place in our source that made it."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def quiet_optuna() -> None:
    """Keep Optuna's log, and warnings that a user cannot act on, out of the terminal."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
