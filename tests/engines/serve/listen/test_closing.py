"""Responses that end their connection: while draining, and if a body may follow that nobody asked for."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from engines.serve.listen.closing import close_when
from engines.serve.listen.http_listener import HttpListener, bind
from tests.engines.serve.listen.connections import read_body, receive_until

SOON = 10.0


async def hello(scope, receive, send) -> None:
    """Answer; at '/read' only after the body was read."""
    if scope["path"] == "/read":
        await read_body(receive)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


def test_responses_close_their_connections_while_draining() -> None:
    draining = threading.Event()
    listener = HttpListener(close_when(draining.is_set, hello), bind("127.0.0.1", 0), 1.0)
    listener.start()
    for close in (False, True):
        with closing(http.client.HTTPConnection("127.0.0.1", listener.port, timeout=10)) as connection:
            connection.request("GET", "/")
            response = connection.getresponse()
            assert response.will_close is close
            assert response.read() == b"hi"
        draining.set()
    listener.close(5.0)


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    listener = HttpListener(hello, bind("127.0.0.1", 0), 1.0)
    listener.start()
    with socket.create_connection(("127.0.0.1", listener.port)) as made:
        made.settimeout(SOON)
        yield made
    listener.close(5.0)


def post(path: bytes, expect: bytes = b"100-continue") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: %b\r\n\r\n" % (path, expect)


def until(connection: socket.socket, end: bytes) -> bytes:
    return receive_until(connection, lambda got: got.endswith(end))


@pytest.mark.parametrize("expect", [b"100-continue", b"100-Continue"])
def test_a_body_that_was_not_asked_for_ends_the_connection(connection: socket.socket, expect: bytes) -> None:
    connection.sendall(post(b"/", expect))
    assert until(connection, b"hi").count(b"connection: close\r\n") == 1
    assert connection.recv(1) == b""


def test_a_body_that_was_asked_for_does_not(connection: socket.socket) -> None:
    for _ in range(2):
        connection.sendall(post(b"/read"))
        assert until(connection, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"12345")
        assert b"connection" not in until(connection, b"hi")
