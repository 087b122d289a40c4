"""What the line and headers of a request must be before anything else looks at it."""

from __future__ import annotations

import http
import json
from collections.abc import Iterable

import httptools

__all__ = ["MALFORMED", "Fault", "fault_of", "refused", "with_path"]

Fault = tuple[int, str]  # the status and the line of the answer
MALFORMED: Fault = (400, "the request is not valid HTTP/1.1; correct its line, headers or chunks")


def fault_of(version: str, headers: Iterable[tuple[bytes, bytes]]) -> Fault | None:
    """Return what is wrong with a request that the parser accepted, or None; header names are in lower case.

    The parser takes any version, any number of Host headers, and any transfer coding that ends in 'chunked'.
    """
    if version not in ("1.0", "1.1"):
        return 505, f"HTTP/{version} is not spoken here; send HTTP/1.1"
    hosts = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            return 501, "only Transfer-Encoding: chunked is decoded; send the body as it is"
    if hosts > 1 or (not hosts and version == "1.1"):  # RFC 9112, 3.2
        return 400, f"an HTTP/1.1 request has one Host header, not {hosts}"
    return None


def with_path(url: bytes) -> bytes:
    """Return a request's target; 'http://host' alone means its root."""
    if url.startswith(b"/"):
        return url
    parsed = httptools.parse_url(url)
    if parsed.path is not None:
        return url
    return b"/" if parsed.query is None else b"/?" + parsed.query


def refused(fault: Fault) -> bytes:
    """Return the whole response to a request that ends its connection."""
    status, line = fault
    body = json.dumps({"error": line}).encode()
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
    ) % (status, http.HTTPStatus(status).phrase.encode(), len(body), body)
