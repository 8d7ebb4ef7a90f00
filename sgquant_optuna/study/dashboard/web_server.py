"""A web server that no client holds up, however many there are and however slow they are.

A connection waits for its request line and headers beside all others in one thread. Only then it
gets a thread of its own, of which there are a fixed number. Each connection ends with its answer,
so that none keeps a thread for a next request.
"""

from __future__ import annotations

import io
import re
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

_MAX_HEAD = 1 << 16  # bytes
_BLOCK = 1 << 16
_END_OF_HEAD = re.compile(rb"\n\r?\n")


@dataclass(frozen=True)
class ClientLimits:
    """Limits of what clients may ask of the server.

    Args:
        silence:
            Seconds without a byte after which a connection is closed.
        head:
            Seconds for the request line and all headers.
        transfer:
            Seconds for the body, and again for the answer, beside those that its bytes take at
            ``rate``.
        rate:
            Bytes per second that the slowest client moves.
        threads:
            Number of requests that are answered at once.
        waiting:
            Number of connections that wait for their headers, and of those that wait for a thread.
    """

    silence: float = 30.0
    head: float = 60.0
    transfer: float = 60.0
    rate: float = 16384.0
    threads: int = 64
    waiting: int = 256


@dataclass(eq=False)
class _Connection:
    socket: socket.socket
    address: Any
    limits: ClientLimits
    received: bytearray = field(default_factory=bytearray)
    opened: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    has_body: bool = False

    def is_late(self, now: float) -> bool:
        """Whether the headers should have been complete by now."""
        late = now - self.opened > self.limits.head
        return late or now - self.heard > self.limits.silence

    def refuse(self, status: str) -> None:
        """Say why in as much as the connection takes at once, and close it."""
        with suppress(OSError):
            self.socket.setblocking(False)
            self.socket.send(f"HTTP/1.0 {status}\r\nContent-Length: 0\r\n\r\n".encode())
        self.socket.close()

    def close(self) -> None:
        """End the answer, and close when the client has, too."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
            # Closed before its body was read, a connection breaks and hides the answer.
            until = time.monotonic() + self.limits.silence
            self.socket.settimeout(min(2.0, self.limits.silence))
            while self.has_body and time.monotonic() < until and self.socket.recv(_BLOCK):
                pass
        self.socket.close()


class _TimedStream(io.RawIOBase):
    """What a connection receives, or what it sends, within its limits of time."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._moved, self._waited = 0, 0.0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        known = self._connection.received
        if known:
            size = min(len(known), len(buffer))
            buffer[:size] = known[:size]
            del known[:size]
            return size
        return self._move(lambda: self._connection.socket.recv_into(buffer))

    def write(self, data: Any) -> int:
        with memoryview(data).cast("B") as view:
            sent = 0
            while sent < len(view):
                with view[sent : sent + _BLOCK] as part:
                    sent += self._move(lambda: self._connection.socket.send(part))  # noqa: B023
            return sent

    def _move(self, act: Callable[[], int]) -> int:
        # The time that the dashboard takes for its answer is not the client's.
        limits = self._connection.limits
        left = limits.transfer + self._moved / limits.rate - self._waited
        start = time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self._connection.socket.settimeout(min(limits.silence, left))
            moved = act()
        except TimeoutError:
            raise ConnectionAbortedError("the client is too slow") from None
        self._waited += time.monotonic() - start
        self._moved += moved
        return moved


class _Handler(WSGIRequestHandler):
    def setup(self) -> None:
        connection: Any = self.request
        self.connection = connection.socket
        self.rfile = io.BufferedReader(_TimedStream(connection), _BLOCK)
        self.wfile: Any = _TimedStream(connection)

    def get_environ(self) -> Any:
        environ = super().get_environ()
        connection: Any = self.request
        has_length = environ["CONTENT_LENGTH"] not in ("", "0")
        connection.has_body = has_length or "HTTP_TRANSFER_ENCODING" in environ
        return environ

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep requests out of the terminal."""


class WebServer(WSGIServer):
    """Listens on an address and answers requests of one application.

    Args:
        host:
            Address to listen on.
        port:
            Port to listen on; 0 for any free one.
        app:
            Application.
        limits:
            Limits of clients.

    Raises:
        OSError:
            If the address cannot be listened on.
    """

    request_queue_size = 128

    def __init__(
        self, host: str, port: int, app: WSGIApplication, limits: ClientLimits | None = None
    ) -> None:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)
        families = {family for family, *_ in found}
        if socket.AF_INET not in families and socket.AF_INET6 in families:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)
        self.set_app(app)
        self._limits = limits or ClientLimits()
        self._stopping = threading.Event()
        self._heads: dict[_Connection, None] = {}  # oldest first
        self._lock = threading.Lock()
        self._ready: deque[_Connection] = deque()
        self._busy = 0

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Answer requests until the server is shut down."""
        self.socket.setblocking(False)
        with selectors.DefaultSelector() as self._selector:
            self._selector.register(self.socket, selectors.EVENT_READ)
            while not self._stopping.is_set():
                for key, _ in self._selector.select(min(poll_interval, self._limits.silence / 4)):
                    if key.data is None:
                        self._accept()
                    elif key.data in self._heads:  # not closed for a newer one in this round
                        self._receive(key.data)
                now = time.monotonic()
                for connection in [one for one in self._heads if one.is_late(now)]:
                    self._forget(connection)
                    connection.socket.close()

    def shutdown(self) -> None:
        """Let :meth:`serve_forever` return; answers that have begun go on."""
        self._stopping.set()

    def server_close(self) -> None:
        """Stop listening, and close all connections that wait."""
        super().server_close()
        for connection in (*self._heads, *self._ready):
            connection.socket.close()

    def _accept(self) -> None:
        full = len(self._heads) >= self._limits.waiting
        try:
            accepted, address = self.socket.accept()
        except BlockingIOError:
            return
        except OSError:  # no file descriptor is left
            full, accepted = True, None
        if full and self._heads:
            # A browser sends its headers at once: what has waited longest will not.
            oldest = next(iter(self._heads))
            self._forget(oldest)
            oldest.socket.close()
        if accepted is None:
            time.sleep(0.01)
            return
        accepted.setblocking(False)
        connection = _Connection(accepted, address, self._limits)
        self._heads[connection] = None
        self._selector.register(accepted, selectors.EVENT_READ, connection)

    def _forget(self, connection: _Connection) -> None:
        del self._heads[connection]
        self._selector.unregister(connection.socket)

    def _receive(self, connection: _Connection) -> None:
        try:
            part = connection.socket.recv(_BLOCK)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        if not part:
            self._forget(connection)
            connection.socket.close()
            return
        known = connection.received
        seen = max(0, len(known) - 2)
        known += part
        connection.heard = time.monotonic()
        if _END_OF_HEAD.search(known, seen):
            self._forget(connection)
            self._begin(connection)
        elif len(known) > _MAX_HEAD:
            self._forget(connection)
            connection.refuse("431 Request Header Fields Too Large")

    def _begin(self, connection: _Connection) -> None:
        """Answer a request in a thread, now or when one is free."""
        with self._lock:
            if self._busy == self._limits.threads:
                if len(self._ready) < self._limits.waiting:
                    self._ready.append(connection)
                else:
                    connection.refuse("503 Service Unavailable")
                return
            self._busy += 1
        try:
            threading.Thread(target=self._work, args=(connection,), daemon=True).start()
        except RuntimeError:  # the system gives no more threads
            with self._lock:
                self._busy -= 1
            connection.refuse("503 Service Unavailable")

    def _work(self, connection: _Connection | None) -> None:
        while connection is not None:
            self._answer(connection)
            with self._lock:
                connection = self._ready.popleft() if self._ready else None
                if connection is None:
                    self._busy -= 1

    def _answer(self, connection: _Connection) -> None:
        try:
            _Handler(connection, connection.address, self)  # type: ignore[arg-type]
        except ConnectionError:
            pass  # the client is gone, or too slow
        except Exception:
            self.handle_error(connection.socket, connection.address)
        finally:
            connection.close()
