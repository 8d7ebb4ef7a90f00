"""How long code of the user's may run: an import is interrupted, a function is waited for."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sgquant_optuna.exceptions import StudyFileError

_logger = logging.getLogger(__name__)
_AGAIN = 1.0  # seconds until a time limit that the code caught is told again


class _TooLate(BaseException):
    """The time of an import is over; no ``Exception``, so that no code takes it for its own."""


@contextmanager
def time_limit(seconds: float, text: str) -> Iterator[None]:
    """Interrupt an import after some seconds, where a signal can: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _TooLate

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    except _TooLate:
        raise StudyFileError(
            f"--study {text}: expected an import of at most {seconds:g} s, it takes longer; move "
            f"slow work into the function"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def waited_for(text: str, call: str, seconds: float) -> Iterator[None]:
    """Tell after some seconds that code of the user's still runs: it may hang."""

    def tell() -> None:
        _logger.warning(
            "--study %s: %s has run for %g s, still waiting for it", text, call, seconds
        )

    timer = threading.Timer(seconds, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
