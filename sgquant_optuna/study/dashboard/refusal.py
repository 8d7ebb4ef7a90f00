"""The answer to a request that the dashboard does not take: its status and one line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


def refuse(
    environ: WSGIEnvironment, start_response: StartResponse, status: str, line: str
) -> Iterable[bytes]:
    """Refuse a request; the page of the dashboard shows the reason that its API tells.

    Args:
        environ:
            Request.
        start_response:
            Function of the server that starts an answer.
        status:
            Code and words, such as ``"403 Forbidden"``.
        line:
            Reason, and what to do.
    """
    is_read = environ["REQUEST_METHOD"] in ("GET", "HEAD")
    writes_to_api = not is_read and environ["PATH_INFO"].startswith("/api/")
    kind = "application/json" if writes_to_api else "text/plain; charset=utf-8"
    body = (json.dumps({"reason": line}) if writes_to_api else line).encode() + b"\n"
    start_response(
        status,
        [
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("X-Content-Type-Options", "nosniff"),
        ],
    )
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
