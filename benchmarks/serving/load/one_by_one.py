"""Blocking clients that send one request after another: the least that a client can add to a latency."""

from __future__ import annotations

import socket
from typing import Any, Self

import grpc

from benchmarks.serving.load.grpc_load import METHOD, OPTIONS
from benchmarks.serving.load.http_load import Address
from benchmarks.serving.load.pool import Entry
from benchmarks.serving.load.tally import parsed_head
from graphs.base.errors import UgsepError

_SECONDS = 60.0


class HttpClient:
    """One keep-alive connection; a context manager."""

    def __init__(self, address: Address) -> None:
        self._socket = socket.create_connection((address.host, address.port), timeout=_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send a whole request; return status, headers and body.

        Raises:
            UgsepError: the server closed the connection before it answered.
        """
        self._socket.sendall(request)
        received = b""
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._more()
        head = parsed_head(received[:end])
        needed = end + 4 + int(head.get("content-length", "0"))
        while len(received) < needed:
            received += self._more()
        return int(received[9:12]), head, received[end + 4 : needed]

    def _more(self) -> bytes:
        data = self._socket.recv(1 << 18)
        if not data:
            raise UgsepError("the server closed the connection before it answered")
        return data

    def infer(self, entry: Entry) -> tuple[dict[str, str], bytes]:
        """Return headers and body of the answer to a request that must succeed.

        Raises:
            UgsepError: another status than 200.
        """
        status, head, body = self.ask(entry.http)
        if status != 200:
            raise UgsepError(f"the server answered {status}: {body[:200].decode('utf-8', 'replace')}")
        return head, body


class GrpcClient:
    """One channel; a context manager."""

    def __init__(self, address: Address) -> None:
        self._channel = grpc.insecure_channel(f"{address.host}:{address.port}", options=OPTIONS)
        self._call: Any = self._channel.unary_unary(METHOD)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def infer(self, entry: Entry) -> bytes:
        """Return the serialized answer to a request that must succeed.

        Raises:
            UgsepError: another status than OK.
        """
        try:
            return bytes(self._call(entry.grpc, timeout=_SECONDS))
        except grpc.RpcError as error:
            raise UgsepError(f"the server answered {error}") from error
