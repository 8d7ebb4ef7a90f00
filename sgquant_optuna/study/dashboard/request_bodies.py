"""Bodies of requests, read within limits before the dashboard sees them; files go to the disk.

The page of the dashboard sends a file as JSON, ``{"file": "data:TYPE;base64,...", "filename":
...}``, of which optuna-dashboard would hold five copies in memory. Here the file is decoded to a
temporary one while it comes, the dashboard gets the same JSON with an empty file, and the store
takes the temporary one.
"""

from __future__ import annotations

import binascii
import io
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO

from sgquant_optuna.study.dashboard.refusal import refuse

if TYPE_CHECKING:
    from wsgiref.types import InputStream, StartResponse, WSGIApplication, WSGIEnvironment

    from sgquant_optuna.storage.artifacts import ArtifactStore

MAX_UPLOAD = 128 << 20  # bytes of a request that holds a file, as optuna-dashboard takes
MAX_JSON = 1 << 20  # bytes of any other request, and of what stands beside a file
_UPLOADS = 8  # at once
_UPLOAD_WAIT = 5.0  # seconds until the next one is refused
_BLOCK = 1 << 16
_UPLOAD_PATH = re.compile(r"/api/artifacts/\d+(/\d+)?/?")
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")
# Quotation marks inside a string of JSON are escaped, so this is a key.
_FILE = re.compile(rb'"file"\s*:\s*"data:[^",\\]*,')
_UPLOADED = "sgquant.uploaded"


class RequestBodies:
    """A WSGI application that reads the body of each request for another one.

    Args:
        app:
            Application that gets bodies which are complete.
        max_upload:
            Bytes of a request that holds a file.
        max_json:
            Bytes of any other request.
    """

    def __init__(
        self, app: WSGIApplication, *, max_upload: int = MAX_UPLOAD, max_json: int = MAX_JSON
    ) -> None:
        self._app = app
        self._max_upload, self._max_json = max_upload, max_json
        self._uploads = threading.BoundedSemaphore(_UPLOADS)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request, or refuse its body in one line."""
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        try:
            if method == "POST" and _UPLOAD_PATH.fullmatch(path):
                return self._answer_upload(environ, start_response)
            body = b"".join(_parts(environ, self._max_json))
        except _RefusedError as error:
            return refuse(environ, start_response, error.status, str(error))
        return self._app(_with_body(environ, body), start_response)

    def _answer_upload(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        parts = _parts(environ, self._max_upload)
        if not self._uploads.acquire(timeout=_UPLOAD_WAIT):
            raise _RefusedError("503 Service Unavailable", "Other files are coming in; try again.")
        try:
            with tempfile.TemporaryFile() as file:
                rest = _take_file(parts, file, self._max_json)
                file.seek(0)
                environ[_UPLOADED] = file
                return self._app(_with_body(environ, rest), start_response)
        finally:
            self._uploads.release()


class UploadStore:
    """An artifact store that takes a file which came with the present request.

    Args:
        store:
            Store behind it.
    """

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open an artifact for reading."""
        return self._store.open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write the file of the request, or the content if none came."""
        from bottle import request

        self._store.write(artifact_id, request.environ.get(_UPLOADED, content_body))

    def remove(self, artifact_id: str) -> None:
        """Remove an artifact."""
        self._store.remove(artifact_id)


class _RefusedError(Exception):
    def __init__(self, status: str, line: str) -> None:
        super().__init__(line)
        self.status = status


def _bad(line: str) -> _RefusedError:
    return _RefusedError("400 Bad Request", line)


def _too_large(limit: int) -> _RefusedError:
    return _RefusedError(
        "413 Content Too Large",
        f"The dashboard takes at most {limit:,} bytes in a request of this kind; attach a larger "
        "file by optuna.artifacts.upload_artifact.",
    )


def _with_body(environ: WSGIEnvironment, body: bytes) -> WSGIEnvironment:
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    environ["CONTENT_LENGTH"] = str(len(body))
    environ["wsgi.input"] = io.BytesIO(body)
    return environ


def _parts(environ: WSGIEnvironment, limit: int) -> Iterator[bytes]:
    """Return the body in blocks; one whose head says too much is refused before it is read."""
    coding = environ.get("HTTP_TRANSFER_ENCODING", "").strip().lower()
    length = environ.get("CONTENT_LENGTH") or "0"
    if coding:
        if coding != "chunked":
            raise _bad(f"Transfer-Encoding: expected chunked, got {coding[:40]}.")
        return _chunks(environ["wsgi.input"], limit)
    if not (length.isascii() and length.isdecimal()):
        raise _bad(f"Content-Length: expected a number, got {length[:40]}.")
    if len(length) > 18 or int(length) > limit:
        raise _too_large(limit)
    return _exactly(environ["wsgi.input"], int(length))


def _exactly(stream: InputStream, size: int) -> Iterator[bytes]:
    while size:
        part = stream.read(min(size, _BLOCK))
        if not part:
            raise _bad("The request ended before its body was complete.")
        size -= len(part)
        yield part


def _chunks(stream: InputStream, limit: int) -> Iterator[bytes]:
    """RFC 9112, section 7.1; trailers are left, because the connection ends after the answer."""
    left = limit
    while True:
        size = stream.readline(1024).partition(b";")[0].strip()
        if not _SIZE.fullmatch(size):
            raise _bad("The body is not chunked as its head says.")
        if not int(size, 16):
            return
        left -= int(size, 16)
        if left < 0:
            raise _too_large(limit)
        yield from _exactly(stream, int(size, 16))
        if stream.readline(3).strip():
            raise _bad("The body is not chunked as its head says.")


def _take_file(parts: Iterator[bytes], file: BinaryIO, most: int) -> bytes:
    """Write the file that JSON holds, and return the JSON with an empty file in its place."""
    head = bytearray()
    found = None
    for part in parts:
        head += part
        found = _FILE.search(head)
        if found is not None:
            break
        if len(head) > most:
            raise _bad('Expected JSON with "file" as a data URI, got none.')
    if found is None:  # optuna-dashboard tells what is missing
        return bytes(head)
    rest = head[: found.end()]
    rest += _decode(chain([bytes(head[found.end() :])], parts), file)
    for part in parts:
        rest += part
        if len(rest) > most:
            raise _too_large(most)
    return bytes(rest)


def _decode(parts: Iterator[bytes], file: BinaryIO) -> bytes:
    """Write what base64 stands for until a quotation mark; return that and what was read after."""
    left = b""
    for part in parts:
        text, mark, after = part.partition(b'"')
        left += text
        whole = len(left) - len(left) % 4
        try:
            file.write(binascii.a2b_base64(left[:whole], strict_mode=True))
        except binascii.Error as error:
            raise _bad(f"The file is not base64 ({error}).") from None
        left = left[whole:]
        if mark:
            if left:
                raise _bad("The file is not base64 (its end is missing).")
            return mark + after
    raise _bad("The request ended inside its file.")
