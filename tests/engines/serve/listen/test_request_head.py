"""Requests that the parser takes and HTTP does not allow, against a real listener."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator

import pytest

from engines.serve.listen.http_listener import HttpListener, bind
from engines.serve.listen.request_head import with_path
from tests.engines.serve.listen.connections import read_body

HOST = b"Host: x\r\n"


async def echo(scope, receive, send) -> None:
    """Answer with the path, the names of the headers and the body."""
    got = await read_body(receive)
    assert got is not None
    names = b",".join(sorted(name for name, _ in scope["headers"]))
    body = b"|".join([scope["path"].encode(), scope["query_string"], names, got])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    listener = HttpListener(echo, bind("127.0.0.1", 0), 1.0)
    listener.start()
    with socket.create_connection(("127.0.0.1", listener.port)) as made:
        made.settimeout(10.0)
        yield made
    listener.close(5.0)


def answer(connection: socket.socket, sent: bytes) -> tuple[http.client.HTTPResponse, bytes]:
    connection.sendall(sent)
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response, response.read()


CHUNKED = b"1\r\na\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "status", "line"),
    [
        (b"POST / HTTP/2.0\r\n" + HOST + b"Content-Length: 0\r\n\r\n", 505, "HTTP/2.0"),
        (b"GET / HTTP/0.9\r\n\r\n", 505, "HTTP/0.9"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "one Host header, not 0"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"host: y\r\n\r\n", 400, "one Host header, not 2"),
        (b"GET / HTTP/1.0\r\n" + HOST * 2 + b"\r\n", 400, "one Host header, not 2"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKED, 501, "only Transfer"),
        (b"GET / HTTP/1.1\r\nX\x00: a\r\n\r\n", 400, "not valid HTTP/1.1"),
    ],
)  # fmt: skip
def test_what_http_does_not_allow_is_one_line_and_ends_the_connection(
    connection: socket.socket, sent: bytes, status: int, line: str
) -> None:
    response, body = answer(connection, sent)
    assert (response.status, response.getheader("connection")) == (status, "close")
    assert line in json.loads(body)["error"]
    assert connection.recv(1) == b""


def test_http_1_0_needs_no_host(connection: socket.socket) -> None:
    response, body = answer(connection, b"GET / HTTP/1.0\r\n\r\n")
    assert (response.status, body) == (200, b"/|||")


@pytest.mark.parametrize(
    ("target", "path"),
    [(b"http://x", b"/|"), (b"http://x?a=b", b"/|a=b"), (b"http://x:80/v2?c", b"/v2|c"), (b"/v2", b"/v2|")],
)
def test_the_target_may_name_the_host(connection: socket.socket, target: bytes, path: bytes) -> None:
    for _ in range(2):
        assert answer(connection, b"GET %b HTTP/1.1\r\n%b\r\n" % (target, HOST))[1] == path + b"|host|"
    assert with_path(target).startswith((b"/", b"http://x:80/"))


def test_trailers_do_not_pass_for_headers(connection: socket.socket) -> None:
    head = b"POST / HTTP/1.1\r\n%bTransfer-Encoding: Chunked\r\nTrailer: X-A\r\n\r\n" % HOST
    trailers = b"X-A: 1\r\nExpect: 100-continue\r\nHost: y\r\n"
    for _ in range(2):
        response, body = answer(connection, head + b"3\r\nabc\r\n0\r\n%b\r\n" % trailers)
        assert (response.status, body) == (200, b"/||host,trailer,transfer-encoding|abc")
    assert answer(connection, b"GET /next HTTP/1.1\r\n%b\r\n" % HOST)[1] == b"/next||host|"
