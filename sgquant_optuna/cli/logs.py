"""What a command logs: a worker one line an event, the others nothing of Optuna's."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from sgquant_optuna.cli.terminal import VisibleStream, visible


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
    handler.setFormatter(_OneLine(text, datefmt="%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger("sgquant_optuna")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.value.upper())


class _OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Keep names with line breaks from looking like lines of their own."""
        return super().formatMessage(record).replace("\n", "\\n")


@contextmanager
def short_warnings() -> Iterator[None]:
    """Write each warning as one line, without the place in our source that made it."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        # A bar of rich that is drawn takes the colours of a text for its own.
        print(visible(f"warning: {' '.join(str(message).split())}"), file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def quiet_optuna() -> None:
    """Keep Optuna's log, and warnings that a user cannot act on, out of the terminal."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for handler in logging.getLogger("optuna").handlers:
        # It keeps the stream that was the standard error when Optuna was imported.
        if isinstance(handler, logging.StreamHandler):
            if not isinstance(handler.stream, VisibleStream):
                handler.setStream(VisibleStream(handler.stream))
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
