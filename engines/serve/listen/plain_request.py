"""A plain POST request, read in two steps of C instead of a callback per header: by far most requests are plain.

Between two requests the scoring evicts the parser's callbacks from the processor's caches, so that what counts is how
much code a request runs through, not how often.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Arriving", "PlainHead", "plain_head"]

_LONGEST = 8192  # bytes of a head
_LINE = re.compile(rb"POST (/[\w./~-]*) HTTP/1\.1\r\n", re.ASCII)
#: A token, and a value of visible characters with spaces only between them.
_HEADER = re.compile(rb"([\w!#$%&'*+.^`|~-]+): ([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)\r\n", re.ASCII)
#: What these headers mean for the connection or the body is left to the parser.
_SPECIAL = frozenset(
    (
        b"connection",
        b"expect",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_MOST_DIGITS = 15


class PlainHead(NamedTuple):
    """The target and the headers of a request, names in lower case; the body has ``length`` bytes from ``end``."""

    url: bytes
    headers: list[tuple[bytes, bytes]]
    length: int
    end: int


def plain_head(data: bytes) -> PlainHead | None:
    """Return the head that ``data`` begins with, or None if it is not whole or needs the parser.

    What is returned is what the parser makes of these bytes: a POST over HTTP/1.1 on a connection that lives on, with
    one Host and one Content-Length.
    """
    end = data.find(b"\r\n\r\n", 0, _LONGEST) + 4
    line = _LINE.match(data, 0, end)
    if line is None:
        return None
    read, hosts, length = line.end() + 2, 0, -1
    headers = []
    for name, value in _HEADER.findall(data, line.end(), end):
        read += len(name) + len(value) + 4
        name = name.lower()
        if name in _SPECIAL:
            return None
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            if length >= 0 or not value.isdigit() or len(value) > _MOST_DIGITS:
                return None
            length = int(value)
        headers.append((name, value))
    if read != end or hosts != 1 or length < 0:  # the pattern has skipped what it does not describe
        return None
    return PlainHead(line[1], headers, length, end)


class Arriving:
    """A plain request whose body arrives.

    The body begins at ``at`` in the joined ``parts``; ``left`` is how many bytes are missing.
    """

    __slots__ = ("at", "left", "parts")

    def __init__(self, head: PlainHead) -> None:
        self.at, self.left = head.end, head.end + head.length
        self.parts: list[bytes] = []

    def take(self, data: bytes, keep: bool) -> bytes:
        """Take what belongs to the request, and return the rest; ``keep`` is whether anybody wants it."""
        rest = data[self.left :]
        data = data[: self.left]
        self.left -= len(data)
        if keep:
            self.parts.append(data)
        return rest
