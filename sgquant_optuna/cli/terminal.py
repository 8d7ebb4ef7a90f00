r"""What reaches the terminal: names and messages from elsewhere as text, never as commands to it.

A name of a study, an attribute, a file or a message of a database may hold ``\x1b[2J``, with which
a terminal clears its screen, or characters that turn the order of a line around.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

# All controls but tabulator and line feed (and a carriage return before it, as in CSV), marks that
# change the direction of a text, and halves of surrogate pairs.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)"
)


def visible(text: str) -> str:
    r"""Return a text in which a control character is shown as Python writes it, ``\x1b``."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


class VisibleStream:
    """A text stream that writes control characters visibly.

    Args:
        stream:
            Stream behind it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def rich_proxied_file(self) -> TextIO:
        """The stream behind it, to which rich writes its colours and moves of the cursor."""
        return self._stream

    def write(self, text: str) -> int:
        """Write a text."""
        self._stream.write(visible(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        """Return what else the stream has, but its bytes."""
        if name == "buffer":  # past which nothing would be looked at
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextmanager
def visible_streams() -> Iterator[None]:
    """Let the standard streams write control characters visibly inside the block.

    They stay so after an error: Python writes its traceback to them.
    """
    kept = sys.stdout, sys.stderr
    for name, stream in zip(("stdout", "stderr"), kept, strict=True):
        if stream is None or isinstance(stream, VisibleStream):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # what the terminal has no letters for
        setattr(sys, name, cast(TextIO, VisibleStream(stream)))
    try:
        yield
    except Exception:
        raise
    except BaseException:
        sys.stdout, sys.stderr = kept
        raise
    sys.stdout, sys.stderr = kept
