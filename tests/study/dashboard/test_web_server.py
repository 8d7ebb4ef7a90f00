"""Real sockets and limits of fractions of a second."""

import http.client
import socket
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest

from sgquant_optuna.study.dashboard.web_server import ClientLimits, WebServer

QUICK = ClientLimits(silence=0.4, head=0.8, transfer=0.8, rate=1e6, threads=4, waiting=8)
ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


def page(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"a page"]


@contextmanager
def serving(app=page, limits=QUICK, host="127.0.0.1"):
    with WebServer(host, 0, app, limits) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def connected(port):
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def get(port, host="127.0.0.1", path="/"):
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def seconds_until_closed(client, act=lambda: None):
    """Return how long the server keeps a connection on which a client acts every 50 ms."""
    begun = time.monotonic()
    client.settimeout(0.05)
    while time.monotonic() - begun < 10:
        try:
            act()
            if not client.recv(1):
                break
        except TimeoutError:
            continue
        except ConnectionError:
            break
    return time.monotonic() - begun


@pytest.mark.parametrize("bound", ["127.0.0.1", "localhost", "::1", "::"])
def test_the_server_listens_on_addresses_of_both_kinds(bound):
    with ExitStack() as stack:
        try:
            port = stack.enter_context(serving(host=bound))
        except OSError:
            pytest.skip("this machine has no IPv6")
        assert get(port, {"::": "::1"}.get(bound, bound)) == (200, b"a page")


@pytest.mark.parametrize("sent", [b"", b"GET", ASK])
def test_a_client_that_falls_silent_before_its_headers_end_is_closed(sent):
    with serving() as port, connected(port) as client:
        client.sendall(sent)
        assert 0.3 < seconds_until_closed(client) < 8


def test_a_client_that_sends_its_headers_byte_by_byte_is_closed():
    with serving() as port, connected(port) as client:
        client.sendall(ASK)
        assert 0.7 < seconds_until_closed(client, lambda: client.send(b"a")) < 8


def reading(environ, start_response):
    environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    return page(environ, start_response)


def test_a_body_may_neither_stop_nor_drip():
    with serving(reading) as port:
        for act, least in ((lambda: None, 0.3), (lambda: client.send(b"a"), 0.7)):
            with connected(port) as client:
                client.sendall(ASK + b"Content-Length: 1000\r\n\r\n")
                assert least < seconds_until_closed(client, act) < 8


def test_a_body_that_moves_may_take_longer_than_the_limit():
    limits = ClientLimits(silence=0.4, head=0.4, transfer=0.2, rate=10)
    with serving(reading, limits) as port, connected(port) as client:
        client.sendall(ASK + b"Content-Length: 100\r\n\r\n")
        for _ in range(10):
            client.sendall(b"x" * 10)
            time.sleep(0.1)
        assert client.makefile("rb").read().endswith(b"a page")


@pytest.mark.parametrize("drips", [False, True])
def test_a_client_that_does_not_read_its_answer_is_closed(drips):
    ended = threading.Event()

    def large(environ, start_response):
        class Parts:
            def __iter__(self):
                return iter([b"x" * (64 << 20)])

            def close(self):
                ended.set()

        start_response("200 OK", [])
        return Parts()

    # A drip of a kilobyte each 50 ms is slower than the rate.
    with serving(large) as port, connected(port) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(ASK + b"\r\n")
        until = time.monotonic() + 10
        while not ended.wait(0.05) and time.monotonic() < until:
            if drips:
                client.recv(1024)
        assert ended.is_set() and time.monotonic() < until


@pytest.mark.parametrize("begun", [b"", ASK])
def test_two_hundred_connections_that_wait_keep_no_page_back(begun):
    patient = ClientLimits(threads=2, waiting=16)
    with serving(limits=patient) as port, ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(connected(port)).sendall(begun)
        threads = threading.active_count()
        start = time.monotonic()
        assert get(port) == (200, b"a page")
        assert time.monotonic() - start < 8 and threads < 12


def test_more_requests_than_threads_wait_and_more_than_that_are_refused():
    inside, gate, most = [], threading.Event(), [0]

    def slow(environ, start_response):
        inside.append(1)
        most[0] = max(most[0], len(inside))
        gate.wait(10)
        inside.pop()
        return page(environ, start_response)

    limits = ClientLimits(threads=3, waiting=4)
    with serving(slow, limits) as port, ExitStack() as stack:
        clients = []
        for _ in range(9):
            clients.append(stack.enter_context(connected(port)))
            clients[-1].sendall(ASK + b"\r\n")
            time.sleep(0.02)
        refused = [client.recv(20) for client in clients[7:]]
        assert refused == [b"HTTP/1.0 503 Service"] * 2
        gate.set()
        answers = [client.makefile("rb").read() for client in clients[:7]]
        assert all(answer.endswith(b"a page") for answer in answers) and most == [3]
        assert get(port) == (200, b"a page")


def test_a_connection_ends_with_its_answer_even_if_it_shall_be_kept():
    with serving() as port, connected(port) as client:
        client.sendall(ASK + b"Connection: keep-alive\r\n\r\n" + ASK + b"\r\n")
        assert client.makefile("rb").read().count(b"200 OK") == 1


def test_headers_without_an_end_are_refused():
    with serving() as port, connected(port) as client:
        client.sendall(ASK + b"X: " + b"a" * 70_000)
        assert client.recv(100).startswith(b"HTTP/1.0 431 ")


def test_an_answer_reaches_a_client_whose_body_was_not_read():
    with serving() as port, connected(port) as client:
        client.sendall(ASK + b"Content-Length: 5000000\r\n\r\n" + b"x" * 5_000_000)
        assert client.makefile("rb").read().endswith(b"a page")


def test_a_client_that_leaves_takes_no_thread_with_it():
    with serving() as port:
        for sent in (b"", b"GET", ASK + b"\r\n", ASK + b"Content-Length: 9\r\n\r\nx", b"\r\n\r\n"):
            for _ in range(6):
                with connected(port) as client:
                    client.sendall(sent)
        # On a busy machine their requests still fill the threads and the queue for a moment.
        until = time.monotonic() + QUICK.silence + QUICK.transfer
        while get(port)[0] == 503 and time.monotonic() < until:
            time.sleep(0.05)
        assert [get(port) for _ in range(3)] == [(200, b"a page")] * 3


def test_a_failing_application_is_told_and_the_next_request_is_answered(capsys):
    def failing(environ, start_response):
        if environ["PATH_INFO"] == "/bad":
            raise ZeroDivisionError
        return page(environ, start_response)

    with serving(failing) as port:
        assert get(port, path="/bad")[0] == 500
        assert get(port)[0] == 200
    assert "ZeroDivisionError" in capsys.readouterr().err
