"""Requests that need no parser: read as the parser reads them, or left to it."""

from __future__ import annotations

import httptools
import pytest

from engines.serve.listen.plain_request import Arriving, plain_head

HEADERS = b"Host: localhost\r\nContent-Length: 5\r\nX-User-Key: a b\r\n"
PLAIN = b"POST /v2/models/m/infer HTTP/1.1\r\n%b\r\nhello" % HEADERS


class Parsed:
    """What the parser makes of a request."""

    def __init__(self, data: bytes) -> None:
        self.url, self.body = b"", b""
        self.headers: list[tuple[bytes, bytes]] = []
        httptools.HttpRequestParser(self).feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body


@pytest.mark.parametrize(
    "data",
    [
        PLAIN,
        PLAIN.replace(b"hello", b"hel"),
        PLAIN.replace(HEADERS, b"content-length: 0005\r\nhost: a\r\n"),
        PLAIN.replace(HEADERS, b"host: a\r\ncontent-length: 5\r\nx!#$%&'*+.^_`|~: \"\\(),/:;<=>?@[]{}\r\n"),
        PLAIN.replace(b"/v2/models/m/infer", b"/"),
    ],
)
def test_a_plain_head_is_what_the_parser_reads(data: bytes) -> None:
    found, parsed = plain_head(data), Parsed(data)
    assert found is not None
    assert (found.url, found.headers, data[found.end :]) == (parsed.url, parsed.headers, parsed.body)
    assert found.length == 5


OTHER_HEADERS = [
    b"content-length: 5\r\n",  # no host
    b"host: a\r\nhost: b\r\ncontent-length: 5\r\n",
    b"host: a\r\n",
    b"host: a\r\ncontent-length: 5\r\ncontent-length: 5\r\n",
    b"host: a\r\ncontent-length: +5\r\n",
    b"host: a\r\ncontent-length: 5, 5\r\n",
    b"host: a\r\ncontent-length: 1000000000000000\r\n",
    b"host: a\r\ncontent-length : 5\r\n",
    b"host: a\r\ncontent-length: 5\r\nx:\r\n",
    b"host: a\r\ncontent-length: 5\r\nx: \r\n",
    b"host: a\r\ncontent-length: 5\r\nx:y\r\n",
    b"host: a\r\ncontent-length: 5\r\nx:  y\r\n",
    b"host: a\r\ncontent-length: 5\r\nx: y \r\n",
    b"host: a\r\ncontent-length: 5\r\nx: y\r\n z\r\n",  # folded
    b"host: a\r\ncontent-length: 5\r\nx: y\tz\r\n",
    b"host: a\r\ncontent-length: 5\r\nx: \xe4\r\n",
    b"host: a\r\ncontent-length: 5\r\nx: y\nz: w\r\n",
    b"host: a\r\ncontent-length: 5\r\nx: y\rz: w\r\n",
    b"host: a\r\ncontent-length: 5\r\nx: y\0\r\n",
    b"host: a\r\ncontent-length: 5\r\nx y: z\r\n",
    b"host: a\r\ncontent-length: 5\r\n: z\r\n",
    b"host: a\r\ncontent-length: 5\r\nConnection: close\r\n",
    b"host: a\r\ncontent-length: 5\r\nTransfer-Encoding: chunked\r\n",
    b"host: a\r\ncontent-length: 5\r\nExpect: 100-continue\r\n",
    b"host: a\r\ncontent-length: 5\r\nUpgrade: h2c\r\n",
    b"host: a\r\ncontent-length: 5\r\nx: %b\r\n" % (b"y" * 8192),
]


@pytest.mark.parametrize("headers", OTHER_HEADERS, ids=range(len(OTHER_HEADERS)))
def test_other_headers_are_left_to_the_parser(headers: bytes) -> None:
    assert plain_head(PLAIN.replace(HEADERS, headers)) is None


@pytest.mark.parametrize(
    "line",
    [
        b"GET /v2/models/m/infer HTTP/1.1",
        b"POST /v2/models/m/infer HTTP/1.0",
        b"POST /v2/models/m/infer HTTP/1.1 ",
        b"POST  /v2/models/m/infer HTTP/1.1",
        b"POST http://a/v2/models/m/infer HTTP/1.1",
        b"POST /v2/models/%6d/infer HTTP/1.1",
        b"POST /v2/models/m/infer?a=b HTTP/1.1",
        b"\r\nPOST /v2/models/m/infer HTTP/1.1",
        b"post /v2/models/m/infer HTTP/1.1",
    ],
)
def test_other_lines_are_left_to_the_parser(line: bytes) -> None:
    assert plain_head(PLAIN.replace(b"POST /v2/models/m/infer HTTP/1.1", line)) is None


@pytest.mark.parametrize("end", range(PLAIN.index(b"hello")))
def test_a_head_that_is_not_whole_is_left_to_the_parser(end: int) -> None:
    assert plain_head(PLAIN[:end]) is None


def test_a_body_ends_where_the_next_request_begins() -> None:
    head = plain_head(PLAIN)
    assert head is not None
    arriving = Arriving(head)
    assert arriving.take(PLAIN[:-2], keep=True) == b""
    assert arriving.left == 2
    assert arriving.take(PLAIN[-2:] + b"POST", keep=True) == b"POST"
    assert (arriving.left, b"".join(arriving.parts)[arriving.at :]) == (0, b"hello")
