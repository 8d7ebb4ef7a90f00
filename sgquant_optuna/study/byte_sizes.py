"""Numbers of bytes: read from a command line and shown in reports."""

from __future__ import annotations

import re

_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{infix}b": base**power
    for infix, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("kmgt", start=1)
}


def parse_bytes(text: str, *, what: str) -> float:
    """Read a number of bytes: ``8MB``, ``800kB``, ``1.5MiB``, ``120000``.

    Args:
        text:
            Number and unit; powers of 1000, or of 1024 with an ``i``. Case does not matter.
        what:
            Option that it was given for.

    Raises:
        ValueError:
            If it is not a positive number of bytes.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _UNITS or not float(match[1]) > 0:
        raise ValueError(
            f"{what}: expected a size such as 8MB, 800kB, 1.5MiB or 120000 (bytes), got {text!r}"
        )
    return float(match[1]) * float(_UNITS[match[2]])


def megabytes(count: float) -> str:
    """Return a number of bytes as reports show it."""
    return f"{count / 1e6:,.3f} MB"


def exact_megabytes(count: float) -> str:
    """Return a number of bytes as reports show it, and to the byte."""
    return f"{megabytes(count)} ({count:,.0f} bytes)"
