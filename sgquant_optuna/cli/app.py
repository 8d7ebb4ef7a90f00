"""Entry point: the commands, and one line for every mistake instead of a traceback."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sgquant_optuna.cli.dashboard_command import dashboard
from sgquant_optuna.cli.evaluate_command import evaluate
from sgquant_optuna.cli.export_command import export
from sgquant_optuna.cli.init_command import init
from sgquant_optuna.cli.list_command import list_studies
from sgquant_optuna.cli.pack_command import pack
from sgquant_optuna.cli.report_command import report
from sgquant_optuna.cli.search_command import search
from sgquant_optuna.cli.serve_command import serve
from sgquant_optuna.cli.status_command import status
from sgquant_optuna.cli.terminal import visible, visible_streams
from sgquant_optuna.cli.worker_command import worker
from sgquant_optuna.exceptions import SgquantError, StudyDeletedError, WorkerError
from sgquant_optuna.search.workers.worker_processes import BAD_INPUT, DELETED

FAILED = 1
INTERRUPTED = 130
_STOPPED = (INTERRUPTED, 143)  # by Ctrl+C, by SIGTERM

_LONGEST_ERROR = 2000  # characters


class _Commands(TyperGroup):
    """The commands; what is wrong on their line is told without control characters."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _visible_messages():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _visible_messages():
            return super().invoke(ctx)


@contextmanager
def _visible_messages() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(getattr(error, "message", None), str):
            error.message = visible(error.message)  # type: ignore[attr-defined]
        raise


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(search)
app.command()(init)
app.command()(worker)
app.command("list")(list_studies)
app.command()(status)
app.command()(report)
app.command()(export)
app.command()(evaluate)
app.command()(pack)
app.command()(dashboard)
app.command()(serve)


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Find how few bits each part of a graph neural network needs.

    Exit codes: 0 done, 1 a worker or its database failed, 2 bad input, 3 the study was
    deleted under its workers, 130 stopped by Ctrl+C, 143 by SIGTERM.
    """


def run() -> None:
    """Run the command line of this process; after a stop, end the process at once.

    Whoever stops it waits for its end, and the interpreter takes a second or more on a busy
    machine to take down what it has imported. Nothing is left to do then but to flush.
    """
    try:
        main()
    except SystemExit as stop:
        if stop.code not in _STOPPED:
            raise
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # a reader that is gone, a stream that is closed
                stream.flush()
        os._exit(stop.code)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit with 2 and one line on bad input, with 1 after a failure."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    # Taken from anywhere on the line: it is thought of after the mistake, at the end.
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    with visible_streams():
        try:
            app(words, prog_name="sgquant")
        except KeyboardInterrupt:
            print("stopped; the same command resumes", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except Exception as error:
            message = None if debug else _message(error)
            if message is None:
                raise
            text, code = message
            print(f"error: {_line(text)}", file=sys.stderr)
            sys.exit(code)


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_ERROR else f"{line[:_LONGEST_ERROR]} ..."


def _message(error: Exception) -> tuple[str, int] | None:
    """Return what to say of an error and the exit code; ``None`` for a mistake of this program."""
    if isinstance(error, WorkerError):
        return str(error), FAILED
    if isinstance(error, StudyDeletedError):
        return str(error), DELETED
    if isinstance(error, (SgquantError, ValueError)):
        return str(error), BAD_INPUT
    if "sgquant_optuna.storage.retries" not in sys.modules:  # then no database has been asked
        return None
    from sgquant_optuna.storage import outage

    said = outage(error)
    return None if said is None else (f"the database failed ({said})", FAILED)
