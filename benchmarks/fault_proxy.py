"""A TCP proxy that forwards connections until it is told to harm them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from sgquant_optuna.storage.urls import resolve_url

_CHUNK = 65536  # bytes
_PORTS = {"postgresql": 5432, "mysql": 3306, "grpc": 13000}


class Harm(StrEnum):
    """What becomes of the connections that are open."""

    DROP = "drop"  # both sides get a reset
    CLIENT_EOF = "half-close"  # the client reads an end, the server is told nothing
    SERVER_EOF = "half-open"  # the server reads an end, the client is told nothing
    STALL = "stall"  # both stay open, nothing is forwarded
    DELAY = "delay"  # each piece of data waits


@dataclass
class _Link:
    """One connection from a client through to the server."""

    client: socket.socket
    server: socket.socket
    harm: Harm | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def suffer(self, harm: Harm) -> None:
        self.harm = harm
        with contextlib.suppress(OSError):  # the connection may end at the same time
            if harm == Harm.DROP:
                for side in (self.client, self.server):
                    # Closing sends a reset at once.
                    reset = struct.pack("ii", 1, 0)
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                self.close()
            elif harm == Harm.CLIENT_EOF:
                self.client.shutdown(socket.SHUT_WR)
            elif harm == Harm.SERVER_EOF:
                self.server.shutdown(socket.SHUT_WR)

    def forwards_to(self, sink: socket.socket) -> bool:
        """Tell whether data that came for one side is passed on."""
        if self.harm in (Harm.CLIENT_EOF, Harm.SERVER_EOF):
            # The end that was told is final, and the other side does not hear of what follows.
            return self.harm == Harm.CLIENT_EOF and sink is self.server
        return True

    def close(self) -> None:
        self.ended.set()
        for side in (self.client, self.server):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()


class FaultProxy:
    """Forwards the connections of a port of its own to a server.

    Args:
        url:
            URL of a database server or gRPC proxy.
        delay:
            Seconds that data waits under :attr:`Harm.DELAY`.
    """

    def __init__(self, url: str, *, delay: float = 0.03) -> None:
        self._server = resolve_url(url)
        self._delay = delay
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._links: list[_Link] = []
        self._harm_of_new: Harm | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, **query: str) -> str:
        """Return the URL of the database through this proxy, with options for the driver."""
        here = self._server.set(host="127.0.0.1", port=self._listener.getsockname()[1])
        options = dict(self._server.query) | query
        return here.set(query=options).render_as_string(hide_password=False)

    def harm(self, harm: Harm, *, also_new: bool = False) -> int:
        """Harm all connections; return how many were open.

        Args:
            harm:
                What becomes of them.
            also_new:
                Whether connections that are made later suffer the same.
        """
        self._harm_of_new = harm if also_new else None
        links = [link for link in self._links if not link.ended.is_set()]
        for link in links:
            link.suffer(harm)
        return len(links)

    def close(self) -> None:
        """End all connections."""
        self._listener.close()
        for link in self._links:
            link.close()

    def _accept(self) -> None:
        address = self._server.host, self._server.port or _PORTS[self._server.get_backend_name()]
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection(address)
            except OSError:
                client.close()
                continue
            for side in (client, server):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, server)
            self._links.append(link)
            if self._harm_of_new is not None:
                link.suffer(self._harm_of_new)
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(link, *ends), daemon=True).start()

    def _pump(self, link: _Link, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(_CHUNK):
                if link.harm == Harm.STALL:
                    break
                if link.harm == Harm.DELAY:
                    time.sleep(self._delay)
                if link.forwards_to(sink):
                    sink.sendall(data)
        except OSError:
            pass
        if link.harm in (None, Harm.DROP, Harm.DELAY):
            link.close()
        # Else silence: neither side hears that the other has closed.


@contextmanager
def fault_proxy(url: str, **options: float) -> Iterator[FaultProxy]:
    """Run a proxy before a server."""
    proxy = FaultProxy(url, **options)
    try:
        yield proxy
    finally:
        proxy.close()
