"""What the tests of the listener read: the body of a request, as an application, and answers, as a client."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


async def read_body(receive: Receive) -> bytes | None:
    """Return the body of a request, None if the client is gone."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


def receive_until(connection: socket.socket, whole: Callable[[bytearray], bool]) -> bytes:
    """Return what a connection gives until it is ``whole``; it must not end before."""
    got = bytearray()
    while not whole(got):
        chunk = connection.recv(1 << 16)
        assert chunk, bytes(got[:200])
        got += chunk
    return bytes(got)


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    """Return the next ``size`` bytes of a connection, and leave what follows."""
    got = bytearray()
    while len(got) < size:
        chunk = connection.recv(min(1 << 16, size - len(got)))
        assert chunk, bytes(got[:200])
        got += chunk
    return bytes(got)
